"""LoRA adapters as models of their own, on the real engine of `cortex/tiny`."""

import pathlib
from collections.abc import Iterator
from functools import partial

import pytest

from cortex_core.ids import ModelId
from neuron.models import BUILTIN
from tests.e2e.adapters import write_adapter
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import LOAD_S, NeuronProcess, kill, running, wait_for

pytestmark = pytest.mark.timeout(600)

ONE, TWO, ZERO = "org/one", "org/two", "org/zero"
ROOM = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}


class Bench:
    """A neuron with adapters beside it.

    Args:
        daemon: the neuron.
        folder: of the adapters.
    """

    def __init__(self, daemon: NeuronProcess, folder: pathlib.Path) -> None:
        self.daemon = daemon
        self.paths = {
            ONE: write_adapter(folder / "one", seed=1),
            TWO: write_adapter(folder / "two", seed=2),
            ZERO: write_adapter(folder / "zero"),
        }

    def load_base(self) -> None:
        """Load the base, with room for adapters, or join it."""
        answer = self.daemon.load(CHAT, engine=ROOM)
        assert answer.status_code == 200, answer.text

    def add(self, model: str) -> None:
        """Load an adapter."""
        answer = self.daemon.load(model, base=CHAT, adapter=self.paths[model])
        assert answer.status_code == 200, answer.text

    def say(self, model: str) -> str:
        """Return what a model says to the same question as all others."""
        answer = self.daemon.ask(
            "/v1/chat/completions",
            model=model,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=12,
            temperature=0,
        )
        assert answer["model"] == model
        return str(answer["choices"][0]["message"]["content"])

    def is_loaded(self, model: str) -> bool:
        """Return whether a model serves."""
        return self.daemon.status(model) == "loaded"

    def refusal(self, model: str) -> int:
        """Return the status with which a request is refused."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        return self.daemon.post("/v1/chat/completions", body).status_code


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One neuron for the module; every test begins with what it needs."""
    with running(tmp_path_factory.mktemp("l")) as daemon:
        yield Bench(daemon, tmp_path_factory.mktemp("adapters"))


def test_base_without_room_for_adapters_says_how_it_gets_some(bench: Bench) -> None:
    """Ours: 409 with the cure; and likewise where there is no base at all."""
    path = bench.paths[ONE]
    if bench.daemon.status(CHAT) != "absent":
        assert bench.daemon.unload(CHAT).status_code == 200
    absent = bench.daemon.load(ONE, base=CHAT, adapter=path)
    assert (absent.status_code, "load that first" in absent.text) == (409, True)
    assert bench.daemon.load(CHAT).status_code == 200

    refused = bench.daemon.load(ONE, base=CHAT, adapter=path)

    assert refused.status_code == 409
    assert "enable_lora = true" in refused.json()["error"]["message"]
    assert bench.daemon.status(ONE) == "absent"
    assert bench.say(CHAT)
    assert bench.daemon.unload(CHAT).status_code == 200


def test_each_adapter_answers_by_its_own_name_on_one_engine(bench: Bench) -> None:
    """Ours: other numbers give other answers, zeros give the base's, and all share an engine."""
    bench.load_base()
    alone = bench.say(CHAT)
    for model in (ONE, TWO, ZERO):
        bench.add(model)

    said = {model: bench.say(model) for model in (CHAT, ONE, TWO, ZERO)}

    assert said[CHAT] == said[ZERO] == alone
    assert len({said[CHAT], said[ONE], said[TWO]}) == 3
    assert len(bench.daemon.engine_processes()) == 1
    reports = {entry["id"]: entry for entry in bench.daemon.http.get("/models").json()}
    assert (reports[ONE]["base"], reports[ONE]["vram_used_mb"]) == (CHAT, 0)
    assert reports[ONE]["devices"] == reports[CHAT]["devices"]
    assert reports[CHAT]["base"] is None


def test_adapter_leaves_the_base_and_comes_back_with_other_weights(bench: Bench) -> None:
    """Ours: nothing that the earlier weights computed is found again under the same name."""
    bench.load_base()
    bench.add(ONE)
    before = bench.say(ONE)
    assert bench.daemon.unload(ONE).status_code == 200
    assert bench.refusal(ONE) == 404
    base = bench.say(CHAT)
    assert base != before
    answer = bench.daemon.load(ONE, base=CHAT, adapter=bench.paths[ZERO])
    assert answer.status_code == 200, answer.text

    assert bench.say(ONE) == base

    assert bench.daemon.unload(ONE).status_code == 200


def test_adapter_that_does_not_fit_leaves_the_others_alone(
    bench: Bench, tmp_path: pathlib.Path
) -> None:
    """Ours: vLLM's reason is told, and the engine answers on."""
    bench.load_base()
    bench.add(TWO)
    said = bench.say(TWO)
    wide = write_adapter(tmp_path / "wide", seed=3, rank=16)
    broken = write_adapter(tmp_path / "broken", seed=3)
    weights = pathlib.Path(broken, "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])

    refusals = {
        model: bench.daemon.load(model, base=CHAT, adapter=path)
        for model, path in (("org/wide", wide), ("org/broken", broken))
    }
    missing = bench.daemon.load("org/missing", base=CHAT, adapter=str(tmp_path / "none"))
    no_adapter = bench.daemon.load(CHAT + "-2", base=CHAT, adapter=str(tmp_path))

    assert {model: answer.status_code for model, answer in refusals.items()} == {
        "org/wide": 503,
        "org/broken": 503,
    }
    assert "rank 16 is greater than max_lora_rank 8" in refusals["org/wide"].text
    assert bench.daemon.unload("org/wide").status_code == 200
    assert (missing.status_code, no_adapter.status_code) == (404, 404)
    assert bench.say(TWO) == said


def test_neither_is_taken_for_the_other(bench: Bench) -> None:
    """Ours: 400 for an adapter without its base, and for a model that is said to be one."""
    bench.load_base()

    alone = bench.daemon.load(bench.paths[ONE])
    model = bench.daemon.load("org/model", base=CHAT, adapter=str(BUILTIN[ModelId(CHAT)].path))

    assert (alone.status_code, "load it with its `base`" in alone.text) == (400, True)
    assert (model.status_code, "is no adapter" in model.text) == (400, True)
    assert bench.say(CHAT)


def test_unloading_the_base_unloads_its_adapters(bench: Bench) -> None:
    """Ours: neither is left, and nor is a process."""
    bench.load_base()
    bench.add(TWO)

    assert bench.daemon.unload(CHAT).status_code == 200

    assert bench.daemon.http.get("/models").json() == []
    assert not bench.daemon.engine_processes()


def test_adapters_come_back_after_the_death_of_their_engine(bench: Bench) -> None:
    """Ours: kill -9; the base recovers, then they do, and say what they said."""
    bench.load_base()
    for model in (ONE, TWO):
        bench.add(model)
    said = {model: bench.say(model) for model in (CHAT, ONE, TWO)}
    (engine,) = bench.daemon.engine_processes()

    kill(engine)

    wait_for(lambda: bench.daemon.status(ONE) == "recovering")
    for model in said:
        wait_for(partial(bench.is_loaded, model), timeout_s=LOAD_S)
    assert {model: bench.say(model) for model in said} == said
    assert len(bench.daemon.engine_processes()) == 1
