"""Hundreds of commands in random order against a daemon with simulated engines."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.fleet.daemons import Daemon, started
from tests.walk.walker import Case, Walk

pytestmark = pytest.mark.timeout(240)

STEPS = 500

# The first two fit together; the third fits alone.
NEURON = """
host = "127.0.0.1"
port = 0
sleep_budget_mb = 20000
memory_wait_s = 0.2
drain_timeout_s = 0.5
[[harnesses]]
name = "simulated"
[harness.simulated]
load_s = 0.02
sleep_s = 0.01
wake_s = 0.01
decode_tok_per_s = 3000
vram_mb = { "sim/a" = 9000, "sim/b" = 9000, "sim/c" = 16000 }
[[devices]]
index = 0
name = "SIM-24"
vram_total_mb = 24576
"""


@pytest.fixture
def neuron(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    config = tmp_path / "neuron.toml"
    config.write_text(NEURON)
    with started("neuron", config, r"ready: http://(\S+)") as daemon:
        yield daemon


@pytest.mark.parametrize("seed", [1, 2])
def test_books_are_right_after_every_one_of_many_commands(neuron: Daemon, seed: int) -> None:
    """Issue: 500 loads, unloads, cancels and chats; ledger and `/models` agree at every step."""
    models = {"sim/a": True, "sim/b": True, "sim/c": True}
    walk = Walk(Case(url=neuron.url, harness="simulated", models=models), seed)

    walk.go(STEPS)

    # A walk that is only ever refused shows nothing.
    for command in (
        "load",
        "unload",
        "cut",
        "cancel",
        "chat",
        "stream",
        "hang-up",
        "sleep",
        "wake",
    ):
        assert walk.answers[command, 200] >= 3, walk.answers
    assert walk.answers["load", 507] >= 3, walk.answers
    assert neuron.process.poll() is None
