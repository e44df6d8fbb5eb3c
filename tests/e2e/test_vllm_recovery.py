"""The real engine dies, in every way that can be had without breaking the machine.

Each time its requests end at once, the model comes back by itself, and nothing else is touched.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cortex_core.ids import ModelId
from neuron.engines import processes
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import LOAD_S, NeuronProcess, kill, running, wait_for

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"model": CHAT, "messages": HELLO, "max_tokens": 3900, "ignore_eos": True}


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """A neuron with two models, of which only `cortex/tiny` is harmed."""

    daemon: NeuronProcess
    bystander: int
    """Process of the other one's engine."""

    def victim(self) -> int:
        """Return the process of the engine that is to be harmed."""
        (engine,) = self.daemon.engine_processes() - {self.bystander}
        return engine

    def report(self) -> dict[str, Any]:
        """Return what `/models` says of the model that is harmed."""
        models = self.daemon.http.get("/models").json()
        found: dict[str, Any] = next(entry for entry in models if entry["id"] == CHAT)
        return found

    def check_well(self) -> None:
        """Check that both models answer, each from one engine, and the bystander's is the same."""
        body = {"model": CHAT, "messages": HELLO, "max_tokens": 2}
        assert self.daemon.post(CHAT_PATH, body).status_code == 200
        embedded = self.daemon.post("/v1/embeddings", {"model": EMBED, "input": "x"})
        assert embedded.status_code == 200
        assert len(self.daemon.engine_processes()) == 2
        assert self.bystander in self.daemon.engine_processes()

    def deaths(self, kind: str) -> float:
        """Return how many engines have died so."""
        return self.daemon.series("neuron_engine_deaths_total").get(f'{{kind="{kind}"}}', 0.0)

    def all_deaths(self) -> float:
        """Return how many engines have died, in whatever way."""
        return sum(self.daemon.series("neuron_engine_deaths_total").values())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Both models loaded, in a neuron that is quick to think that an engine hangs."""
    folder = tmp_path_factory.mktemp("r")
    with running(folder, NEURON_HANG_TIMEOUT_S="5", NEURON_RECOVERY_FAILURES="50") as daemon:
        assert daemon.load(EMBED).status_code == 200
        (bystander,) = daemon.engine_processes()
        assert daemon.load(CHAT).status_code == 200
        yield Shared(daemon=daemon, bystander=bystander)


def test_killed_engine_breaks_its_stream_and_comes_back(shared: Shared) -> None:
    """Ours: an error event and no `[DONE]`; then it serves again, in a process of its own."""
    daemon, victim, deaths = shared.daemon, shared.victim(), shared.deaths("died")
    family = processes.family([victim])

    with daemon.http.stream("POST", CHAT_PATH, json={**ENDLESS, "stream": True}) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        kill(victim)
        text += "".join(pieces)

    assert "engine_error" in text
    assert "[DONE]" not in text
    wait_for(lambda: shared.deaths("died") == deaths + 1)
    wait_for(lambda: shared.report()["status"] == "loaded", timeout_s=LOAD_S)
    assert not processes.alive(family)
    assert shared.victim() != victim
    shared.check_well()


def test_engine_that_dies_idle_is_noticed_and_loads_join_its_recovery(shared: Shared) -> None:
    """Ours: nobody has to ask it something first."""
    daemon = shared.daemon
    kill(shared.victim())

    wait_for(lambda: shared.report()["status"] == "recovering")
    found = shared.report()
    assert (found["error_kind"], found["recovery"]["attempts"] >= 1) == ("died", True)
    assert daemon.load(CHAT).status_code == 200
    shared.check_well()


def test_stopped_engine_is_found_and_ended(shared: Shared) -> None:
    """Issue: SIGSTOP, after which no signal but SIGKILL does anything to it."""
    daemon, victim = shared.daemon, shared.victim()
    family = processes.family([victim])

    with daemon.http.stream("POST", CHAT_PATH, json={**ENDLESS, "stream": True}) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        os.kill(victim, signal.SIGSTOP)
        text += "".join(pieces)

    assert "engine_error" in text
    assert "[DONE]" not in text
    wait_for(lambda: shared.report()["status"] == "loaded", timeout_s=LOAD_S)
    assert shared.deaths("hung") == 1
    assert not processes.alive(family)
    assert daemon.series("neuron_recoveries_total")['{outcome="ok"}'] >= 1
    shared.check_well()


def test_engine_that_gets_no_memory_any_more_dies_of_that(shared: Shared) -> None:
    """Issue: memory exhaustion, as far as it can be had without harm to the machine.

    Whose allocation fails first is chance, and not every library says that it was for memory.
    """
    daemon, victim, deaths = shared.daemon, shared.victim(), shared.all_deaths()
    resource.prlimit(victim, resource.RLIMIT_AS, (1 << 20, 1 << 20))
    long = [{"role": "user", "content": "word " * 1200}]

    def has_died() -> bool:
        body = {"model": CHAT, "messages": long, "max_tokens": 2}
        # It may still find room for one in what it has.
        daemon.post(CHAT_PATH, body)
        return shared.all_deaths() > deaths

    wait_for(has_died, timeout_s=60)
    assert daemon.load(CHAT).status_code == 200
    shared.check_well()


@pytest.mark.parametrize(
    ("flaw", "options", "status", "kind"),
    [
        ("truncated", {}, 503, "missing_file"),
        ("strange", {}, 400, "unsupported_architecture"),
        ("no-weights", {}, 404, "missing_file"),
        ("none", {"max_model_length": 5}, 400, "bad_option"),
    ],
)
def test_load_that_cannot_work_is_told_with_its_kind(
    shared: Shared,
    tmp_path: pathlib.Path,
    flaw: str,
    options: dict[str, object],
    status: int,
    kind: str,
) -> None:
    """Issue: at once, with a reason; nothing of it stays, and the next load is fine."""
    daemon, folder = shared.daemon, tmp_path / flaw
    shutil.copytree(BUILTIN[ModelId(CHAT)].path, folder)
    _spoil(folder, flaw)
    with daemon.http.stream("GET", "/events") as events:
        lines = events.iter_lines()
        answer = daemon.load(str(folder), engine=options)
        told = _last_report(lines, str(folder))

    assert answer.status_code == status, answer.text
    assert told["error_kind"] == kind, told
    daemon.unload(str(folder))
    shared.check_well()


def _spoil(folder: pathlib.Path, flaw: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    match flaw:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "no-weights":
            weights.unlink()
        case "strange":
            fields = json.loads(config.read_text())
            fields |= {"architectures": ["StrangeForCausalLM"], "model_type": "strange"}
            config.write_text(json.dumps(fields))
        case _:
            pass


def _last_report(lines: Iterator[str], model: str) -> dict[str, Any]:
    """Return the report with which the load of a model ended."""
    for line in lines:
        if line.startswith("data: ") and '"harness"' in line:
            report: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if report.get("id") == model and report["status"] in ("failed", "unloaded"):
                return report
    raise AssertionError("the event stream ended first")
