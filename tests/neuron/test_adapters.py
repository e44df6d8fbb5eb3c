"""Adapters at the supervisor: they wait for their base, go with it, and come back with it."""

import asyncio

import msgspec
import pytest

from cortex_core.errors import ConflictError, InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.replica import ReplicaState
from neuron.lifecycle.restoring import residents
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of
from tests.neuron.conftest import Start

BASE, A, B = ModelId("base"), ModelId("a"), ModelId("b")


async def add(bench: Bench, model: ModelId, base: ModelId = BASE, adapter: str = "") -> None:
    """Load an adapter and wait for it."""
    spec = ModelSpec(model=model, harness="fake", base=base, adapter=adapter or None)
    life = await bench.supervisor.load(spec)
    await asyncio.shield(life.loaded)


def here(bench: Bench) -> dict[ModelId, ReplicaStatus]:
    """Return what is there."""
    return {state.asked.model: state.status for state in bench.supervisor.states()}


def on_engine(bench: Bench) -> list[ModelId]:
    """Return the adapters that the harness has on engines."""
    return [spec.model for spec in bench.harness.adapted]


async def test_adapter_takes_its_bases_engine_and_no_memory(bench: Bench) -> None:
    """Issue: models of their own on a shared base."""
    await bench.load(BASE, 90)
    await add(bench, A)
    await add(bench, B)

    assert (bench.held(), len(bench.harness.engines)) == ([90, 0], 1)
    assert bench.supervisor.state(A).devices == bench.supervisor.state(BASE).devices
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    assert [bench.supervisor.state(model).in_flight for model in (BASE, A, B)] == [0, 1, 0]
    bench.harness.engines[0].answer()
    assert await request is None


async def test_adapter_waits_for_a_base_that_is_coming(bench: Bench) -> None:
    """Ours: and is refused where none comes, or where it fails."""
    with pytest.raises(ConflictError, match="load that first"):
        await add(bench, A)
    assert here(bench) == {}
    bench.harness.may_load.clear()
    base = bench.tasks.create_task(bench.load(BASE))
    await settle()
    adapter = bench.tasks.create_task(add(bench, A))
    await settle()
    assert bench.status(A) is ReplicaStatus.LOADING
    progress = bench.supervisor.state(A).progress
    assert progress is not None
    assert progress.stage == "base"

    bench.harness.may_load.set()
    await base
    await adapter

    assert set(here(bench).values()) == {ReplicaStatus.LOADED}
    with pytest.raises(InvalidRequestError, match="an adapter itself"):
        await add(bench, B, base=A)
    with pytest.raises(ConflictError, match="adapter is"):
        await add(bench, A, adapter="/elsewhere")


async def test_unloads_in_either_order_leave_nothing(bench: Bench) -> None:
    """Ours: an adapter leaves the base, the base takes its adapters along, after their requests."""
    await bench.load(BASE)
    await add(bench, A)
    await add(bench, B)
    await bench.supervisor.unload(A, 0)
    assert (here(bench), on_engine(bench)) == (
        {BASE: ReplicaStatus.LOADED, B: ReplicaStatus.LOADED},
        [B],
    )
    request = bench.tasks.create_task(bench.ask(B))
    await settle()

    unload = bench.tasks.create_task(bench.supervisor.unload(BASE, 10))
    await settle()
    assert set(here(bench).values()) == {ReplicaStatus.UNLOADING}
    assert not bench.harness.engines[0].is_closed
    with pytest.raises(ConflictError, match="is unloading"):
        await add(bench, A)
    bench.harness.engines[0].answer()
    await unload

    assert await request is None
    assert (here(bench), on_engine(bench), bench.held()) == ({}, [], [0, 0])
    assert bench.harness.engines[0].is_closed


async def test_base_that_is_given_up_while_it_loads_takes_its_adapters_along(bench: Bench) -> None:
    """Ours: nobody waits for what does not come."""
    bench.harness.may_load.clear()
    base = bench.tasks.create_task(outcome_of(bench.load(BASE)))
    await settle()
    adapter = bench.tasks.create_task(outcome_of(add(bench, A)))
    await settle()

    await bench.supervisor.unload(BASE, 0)

    assert isinstance(await base, ConflictError)
    assert isinstance(await adapter, ConflictError)
    assert here(bench) == {}


async def test_death_of_the_base_is_theirs_and_they_come_back_with_it(bench: Bench) -> None:
    """Ours: as often as it takes the base."""
    await bench.load(BASE)
    await add(bench, A)
    bench.harness.may_load.clear()
    bench.harness.engines[0].die("its process was killed")
    await settle()
    assert here(bench) == {BASE: ReplicaStatus.RECOVERING, A: ReplicaStatus.RECOVERING}

    await bench.clock.advance(5)
    assert here(bench) == {BASE: ReplicaStatus.RECOVERING, A: ReplicaStatus.RECOVERING}
    bench.harness.may_load.set()
    await bench.clock.advance(5)

    assert here(bench) == {BASE: ReplicaStatus.LOADED, A: ReplicaStatus.LOADED}
    assert bench.supervisor.engine(A) is not None
    assert len(bench.harness.engines) == 2
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    bench.harness.engines[1].answer()
    assert await request is None


async def test_adapter_that_cannot_be_added_leaves_the_base_alone(bench: Bench) -> None:
    """Ours: it failed, and nothing else did."""
    await bench.load(BASE)
    bench.harness.load_error = ModelLoadFailedError("rank 64 is greater than 16")

    with pytest.raises(ModelLoadFailedError, match="rank 64"):
        await add(bench, A)

    bench.harness.load_error = None
    assert here(bench)[BASE] is ReplicaStatus.LOADED
    assert on_engine(bench) == []


async def test_neither_sleeps_while_there_are_adapters(bench: Bench) -> None:
    """Ours: 409 that names them; afterwards the base sleeps, and takes none."""
    await bench.load(BASE)
    await add(bench, A)
    with pytest.raises(ConflictError, match="'a'"):
        await bench.supervisor.sleep(BASE, 1, 0)
    with pytest.raises(ConflictError, match="cannot sleep"):
        await bench.supervisor.sleep(A, 1, 0)
    await bench.supervisor.unload(A, 0)

    await bench.supervisor.sleep(BASE, 1, 0)

    with pytest.raises(ConflictError, match="is sleeping"):
        await add(bench, A)


async def test_recycling_brings_them_back(bench: Bench) -> None:
    """Ours: base first, on a new engine."""
    await bench.load(BASE)
    await add(bench, A)

    await bench.supervisor.recycle()

    assert here(bench) == {BASE: ReplicaStatus.LOADED, A: ReplicaStatus.LOADED}
    assert (len(bench.harness.engines), on_engine(bench)) == (2, [A])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"base": "a"}, "base"),
        ({"base": ""}, "base"),
        ({"adapter": "/somewhere"}, "base"),
        ({"base": "base", "quant": "fp8"}, "quant"),
        ({"base": "base", "devices": [0]}, "devices"),
        ({"base": "base", "engine": {"max_model_len": 8}}, "engine.max_model_len"),
    ],
)
async def test_what_is_the_bases_is_refused_and_named(
    start: Start, body: dict[str, object], param: str
) -> None:
    """Ours: rather than not heeded."""
    async with start() as neuron:
        status, answer, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated", **body}
        )

    assert (status, answer["error"]["param"]) == (400, param)


async def test_simulated_adapter_answers_as_a_model_of_its_own(start: Start) -> None:
    """Ours: over HTTP, listed with its base, which is listed with none."""
    async with start() as neuron:
        await neuron.load("base")
        adapter = {"model_id": "a", "harness": "simulated", "base": "base"}
        refused, _, _ = await neuron.post("/models/load", adapter)
        await neuron.post("/models/unload", {"model_id": "base"})
        await neuron.load("base", engine={"enable_lora": True})
        await neuron.load("a", base="base")
        chat = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        status, answer, _ = await neuron.post("/v1/chat/completions", chat)
        fit, _, _ = await neuron.post("/models/fit", adapter)
        base, adapter = await neuron.model("base"), await neuron.model("a")

    assert (refused, status, answer["model"]) == (409, 200, "a")
    assert (adapter["base"], adapter["vram_used_mb"], adapter["devices"]) == ("base", 0, [0])
    assert base["base"] is None
    assert fit == 400


def test_bases_are_remembered_before_their_adapters() -> None:
    """Ours: whatever was used last, a restart has to load the base first."""
    base = ReplicaState(
        asked=ModelSpec(model=BASE, harness="fake"),
        status=ReplicaStatus.LOADED,
        since=0.0,
        devices=(DeviceIndex(0),),
        last_used=1.0,
    )
    adapter = msgspec.structs.replace(
        base, asked=ModelSpec(model=A, harness="fake", base=BASE), last_used=2.0
    )

    assert [spec.model for spec in residents([adapter, base], ())] == [BASE, A]
