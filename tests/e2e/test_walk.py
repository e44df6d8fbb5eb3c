"""Commands in random order against the real engine: the processes are right as well."""

import os
import pathlib
from collections.abc import Iterator

import pytest

from neuron.engines import processes
from tests.e2e.conftest import CHAT, EMBED
from tests.fleet.daemons import Daemon, started
from tests.walk.walker import WEIGHTS, Case, Walk

pytestmark = pytest.mark.timeout(3600)

STEPS = int(os.environ.get("CORTEX_WALK_STEPS", "60"))
"""A load takes seconds; set the variable for a longer walk."""

NEURON = """
host = "127.0.0.1"
port = 0
memory_wait_s = 0.2
drain_timeout_s = 0.5
[[harnesses]]
name = "vllm"
[[devices]]
index = 0
name = "CPU"
vram_total_mb = 4000
"""

COMMANDS = {
    **WEIGHTS,
    "kill": 12,
    "load": 20,
    "chat": 60,
    "stream": 20,
    "hang-up": 25,
    "sleep": 2,
    "wake": 2,
}


@pytest.fixture
def neuron(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tmp_path / "neuron.toml"
    config.write_text(NEURON)
    with started("neuron", config, r"ready: http://(\S+)") as daemon:
        yield daemon


def test_books_and_processes_are_right_after_every_command(neuron: Daemon) -> None:
    """Issue: the ledger, `/models` and the process table agree at every step."""

    def engines() -> list[processes.Process]:
        below = processes.family([neuron.process.pid])
        return [member for member in below if "EngineCore" in _command(member.pid)]

    case = Case(
        url=neuron.url,
        harness="vllm",
        models={CHAT: True, EMBED: False},
        engines=lambda: len(engines()),
        kill=lambda: processes.kill(engines()[:1]),
        commands=COMMANDS,
    )
    walk = Walk(case, seed=1)

    walk.go(STEPS)

    print(f"\n{STEPS} commands: {dict(walk.answers)}")
    for command in ("load", "unload", "chat"):
        assert walk.answers[command, 200], walk.answers
    assert neuron.process.poll() is None


def _command(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
