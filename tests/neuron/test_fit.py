"""Asking whether a load would work, over HTTP, and loads that are refused for it."""

import asyncio

import msgspec
import pytest

from cortex_core.errors import InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import Knowledge
from cortex_core.ids import ModelId
from cortex_core.knowledge import ModelFacts
from cortex_core.wire.fit import FitReport
from tests.neuron.bench import Bench, outcome_of
from tests.neuron.conftest import PATIENCE_S, Start


async def test_fit_tells_of_a_load_and_does_nothing(start: Start) -> None:
    """Issue 5: checks, devices and memory, with what the model can do."""
    async with start(simulated={"vram_mb": {"a": 600, "b": 500}, "context": 128}) as neuron:
        await neuron.load("a")

        status, fits, _ = await neuron.post(
            "/models/fit", {"model_id": "a", "harness": "simulated", "vram_mb": 1}
        )
        _, other, _ = await neuron.post("/models/fit", {"model_id": "b", "harness": "simulated"})
        models = await neuron.get("/models")

    report = msgspec.convert(other, FitReport)
    assert status == 200
    assert [model["id"] for model in models] == ["a"]
    assert report.ok is False
    assert [one.name for one in report.failures] == ["room"]
    assert report.failures[0].message == (
        "it needs 500 MiB; cuda-dev-0 has 400 MiB free of 1,000 MiB"
    )
    assert report.devices[0].free_bytes == 400 << 20
    assert report.limit is not None
    assert report.limit.context == 128
    assert report.capabilities is not None
    assert report.capabilities.chat
    assert fits["needed"]["source"] == "measured"
    assert fits["ok"] is True


async def test_fit_of_a_wrong_option_fails_by_it(start: Start) -> None:
    """Ours: what a load would be refused for."""
    async with start() as neuron:
        status, body, _ = await neuron.post(
            "/models/fit", {"model_id": "a", "harness": "simulated", "engine": {"nonsense": 1}}
        )
        refused, _, _ = await neuron.post("/models/fit", {"model_id": "a", "harness": "none"})

    assert (status, body["ok"]) == (200, False)
    assert body["checks"][0]["name"] == "options"
    assert "nonsense" in body["checks"][0]["message"]
    assert refused == 400


async def test_load_that_is_too_large_for_every_device_is_refused_at_once(start: Start) -> None:
    """Ours: 507, with what it needs and what there is; nothing waits for it."""
    async with start(simulated={"vram_mb": {"a": 2000}}) as neuron:
        status, body, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated"}
        )

    assert status == 507
    assert body["error"]["code"] == "insufficient_vram"
    assert "it needs 2,000 MiB; cuda-dev-0 has 1,000 MiB" in body["error"]["message"]


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (ModelFacts(damage="a.safetensors: it has 3 bytes"), ModelLoadFailedError),
        (ModelFacts(is_known_architecture=False), InvalidRequestError),
        (ModelFacts(context=10, longest=5), InvalidRequestError),
    ],
)
async def test_load_that_cannot_work_never_reaches_the_engine(
    bench: Bench, facts: ModelFacts, kind: type[Exception]
) -> None:
    """Ours: no device memory is taken for it, and the next load is fine."""
    bench.harness.knowledge = Knowledge(facts=facts)

    error = await outcome_of(bench.load(ModelId("a")))
    bench.harness.knowledge = Knowledge()
    await bench.load(ModelId("a"))

    assert isinstance(error, kind)
    assert len(bench.harness.specs) == 1


async def test_refusal_names_what_would_fit(bench: Bench) -> None:
    """Issue 5: the nearest spec that would pass."""
    bench.harness.knowledge = Knowledge(facts=ModelFacts(context=1024, longest=512))

    error = await outcome_of(bench.load(ModelId("a")))

    assert error is not None
    assert error.message == (
        "'a' cannot be loaded: max_model_len 1024 is above the model's own 512; "
        "max_model_len 512 would fit"
    )
    assert isinstance(error, InvalidRequestError)
    assert error.param == "context"


async def test_model_is_put_where_it_can_run() -> None:
    """Ours: an old card is left out, though it comes first and has room."""
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, capabilities=("7.0", "8.9"))
        bench.harness.knowledge = Knowledge(
            facts=ModelFacts(quantization="fp4", is_known_quantization=True, min_capability="8.0")
        )
        await bench.load(ModelId("a"))
        devices = bench.supervisor.state(ModelId("a")).devices
        await bench.close()

    assert devices == (1,)
