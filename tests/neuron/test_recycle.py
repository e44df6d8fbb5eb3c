"""Replacing engines: on demand, and when a device has lost too much memory."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cortex_core.device import DeviceReading
from cortex_core.errors import ConflictError, ModelLoadFailedError, NoReplicaError, RecoveringError
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from tests.fakes.clock import settle
from tests.fakes.gauge import FakeGauge
from tests.neuron.bench import Bench, outcome_of
from tests.neuron.conftest import Start

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
MIB = 1 << 20


@pytest.fixture
async def measured() -> AsyncIterator[Bench]:
    """A supervisor whose two devices of 100 MiB are measured by a driver."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, FakeGauge(2), 100 * MIB)
        yield bench
        await bench.close()


async def test_recycling_brings_the_same_models_back_in_new_engines(bench: Bench) -> None:
    """Ours: loaded ones come back, sleeping ones do not, and the count begins anew."""
    await bench.load(A, 30)
    await bench.load(B, 40)
    await bench.load(C, 10)
    await bench.supervisor.unload(C, 0)
    await bench.load(C, 10)
    await bench.supervisor.sleep(C, 2, 0)
    assert bench.supervisor.recycling.cycles == 1
    before = list(bench.harness.engines)

    await bench.supervisor.recycle()

    assert all(engine.is_closed for engine in before)
    assert [state.asked.model for state in bench.supervisor.states()] == [A, B]
    assert [bench.status(model) for model in (A, B)] == [ReplicaStatus.LOADED] * 2
    assert (bench.harness.recycles, bench.supervisor.recycling.cycles) == (1, 0)
    assert sum(bench.held()) == 70


async def test_engine_that_dies_in_that_moment_comes_back_too(bench: Bench) -> None:
    """Ours: at whatever step of its death the engines are to be replaced."""
    for steps in range(10):
        await bench.load(A, 30)
        bench.harness.engines[-1].die("killed")
        for _ in range(steps):
            await asyncio.sleep(0)
        recycling = bench.tasks.create_task(outcome_of(bench.supervisor.recycle()))
        await bench.clock.advance(200)
        await recycling

        assert bench.status(A) is ReplicaStatus.LOADED


async def test_requests_meanwhile_may_go_elsewhere_and_running_ones_may_end(bench: Bench) -> None:
    """Ours: at no moment is a model that will be back unknown here."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    recycling = bench.tasks.create_task(bench.supervisor.recycle())
    await settle()
    assert isinstance(await bench.ask(A), RecoveringError)
    assert not request.done()

    bench.harness.may_load.clear()
    await bench.clock.advance(31)

    assert isinstance(await request, NoReplicaError)
    refused = await bench.ask(A)
    assert isinstance(refused, RecoveringError)
    assert refused.retry_after_s is not None
    bench.harness.may_load.set()
    await recycling
    assert bench.status(A) is ReplicaStatus.LOADED


async def test_recyclings_that_come_together_are_one_and_commands_wait_for_it(
    bench: Bench,
) -> None:
    """Ours: single flight, and no load in between."""
    await bench.load(A)
    bench.harness.may_load.clear()
    recyclings = [bench.tasks.create_task(bench.supervisor.recycle()) for _ in range(3)]
    await settle()
    load = bench.tasks.create_task(bench.load(B))
    await settle()
    assert not bench.supervisor.has(B)

    bench.harness.may_load.set()
    for recycling in recyclings:
        await recycling
    await load

    assert bench.harness.recycles == 1
    assert bench.status(B) is ReplicaStatus.LOADED


async def test_command_does_not_wait_for_ever(bench: Bench) -> None:
    """Ours: a load that takes long to come back makes others 503, not silent."""
    await bench.load(A)
    bench.harness.may_load.clear()
    recycling = bench.tasks.create_task(bench.supervisor.recycle())
    await settle()
    load = bench.tasks.create_task(outcome_of(bench.load(B)))
    await settle()

    await bench.clock.advance(61)

    assert isinstance(await load, RecoveringError)
    bench.harness.may_load.set()
    await recycling


async def test_model_that_is_being_loaded_is_left_alone(bench: Bench) -> None:
    """Ours: 409, and nothing has been touched."""
    await bench.load(A)
    bench.harness.may_load.clear()
    load = bench.tasks.create_task(bench.load(B))
    await settle()

    assert isinstance(await outcome_of(bench.supervisor.recycle()), ConflictError)

    assert bench.status(A) is ReplicaStatus.LOADED
    bench.harness.may_load.set()
    await load


async def test_model_that_does_not_come_back_is_told_and_the_others_do(bench: Bench) -> None:
    """Ours: the count begins anew all the same, or it would be tried again for ever."""
    await bench.load(A)
    await bench.load(B)
    bench.harness.load_error = ModelLoadFailedError("no")
    recycling = bench.tasks.create_task(outcome_of(bench.supervisor.recycle()))
    await settle()
    error = await recycling
    bench.harness.load_error = None

    assert isinstance(error, ModelLoadFailedError)
    assert bench.supervisor.recycling.cycles == 0
    assert not bench.supervisor.recycling.is_running
    assert [bench.status(model) for model in (A, B)] == [ReplicaStatus.FAILED] * 2


async def test_cordoned_node_brings_back_what_it_had(bench: Bench) -> None:
    """Ours: nothing of that is new."""
    await bench.load(A)
    bench.notebook.change(bench.notebook.notes.with_cordon(True))

    await bench.supervisor.recycle()

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_memory_that_does_not_come_back_is_a_leak_and_the_device_is_mended(
    measured: Bench,
) -> None:
    """Ours: past the bound the engines on that device are replaced, and on no other."""
    bench, device = measured, DeviceIndex(0)
    bench.harness.size_bytes = 20 * MIB
    await bench.load(A, 20 * MIB)
    bench.harness.leak_bytes = 9 * MIB
    await bench.load(B, 20 * MIB)
    bench.harness.leak_bytes = 0
    assert bench.supervisor.state(A).devices == bench.supervisor.state(B).devices == (device,)

    unload = bench.tasks.create_task(bench.supervisor.unload(B, 0))
    await bench.clock.advance(9)
    assert not unload.done()
    await bench.clock.advance(2)
    await unload
    await bench.clock.advance(1)

    assert bench.harness.engines[0].is_closed
    assert bench.status(A) is ReplicaStatus.LOADED
    # What outlives engines is left to those of the other devices.
    assert bench.harness.recycles == 0
    # It is nobody's fault any more, but still not free.
    assert bench.memory.budget.leaked[device] == 0
    assert bench.memory.budget.free_bytes(device) == 71 * MIB


async def test_leak_is_shown_until_it_comes_back(measured: Bench) -> None:
    """Ours: what comes late was none."""
    bench, device = measured, DeviceIndex(0)
    bench.harness.size_bytes, bench.harness.leak_bytes = 2 * MIB, MIB
    await bench.load(A, 2 * MIB)
    unload = bench.tasks.create_task(bench.supervisor.unload(A, 0))
    await bench.clock.advance(11)
    await unload
    assert bench.memory.budget.leaked[device] == MIB
    assert bench.memory.budget.free_bytes(device) == 99 * MIB

    bench.gauge_of(device, 0)
    await bench.clock.advance(1)
    bench.read()

    assert bench.memory.budget.leaked[device] == 0
    assert bench.memory.budget.free_bytes(device) == 100 * MIB


async def test_what_the_driver_shows_counts_for_the_next_load(measured: Bench) -> None:
    """Ours: memory of other processes is not ours to give away, and comes back when it is free."""
    bench, device = measured, DeviceIndex(0)
    bench.harness.size_bytes = 30 * MIB
    await bench.load(A, 50 * MIB)
    assert bench.held() == [30 * MIB, 0]
    await bench.clock.advance(1)

    bench.gauge_of(device, 75 * MIB)
    bench.read()

    assert bench.memory.budget.free_bytes(device) == 25 * MIB
    await bench.load(B, 60 * MIB)
    assert bench.supervisor.state(B).devices == (1,)
    bench.gauge_of(device, 30 * MIB)
    await bench.clock.advance(1)
    bench.read()
    assert bench.memory.budget.free_bytes(device) == 70 * MIB


async def test_reading_from_before_a_change_says_nothing(measured: Bench) -> None:
    """Ours: it would show memory as taken that has just been given back."""
    bench = measured
    bench.harness.size_bytes = 30 * MIB
    await bench.load(A, 30 * MIB)
    old = [DeviceReading(index=DeviceIndex(0), vram_used_bytes=30 * MIB)]
    begun_at = bench.clock.now()
    await bench.clock.advance(1)
    await bench.supervisor.unload(A, 0)

    bench.memory.reconcile(old, begun_at)

    assert bench.memory.budget.free_bytes(DeviceIndex(0)) == 100 * MIB


async def test_sleeping_engine_keeps_what_the_driver_says_it_keeps(measured: Bench) -> None:
    """Ours: its context stays on the device, and the ledger knows."""
    bench = measured
    bench.harness.size_bytes = 40 * MIB
    await bench.load(A, 40 * MIB)
    bench.harness.engines[0].asleep_bytes = 5 * MIB
    sleep = bench.tasks.create_task(bench.supervisor.sleep(A, 2, 0))
    await bench.clock.advance(1)
    await sleep
    assert bench.held() == [5 * MIB, 0]

    await bench.wake(A)

    assert bench.held() == [40 * MIB, 0]


@pytest.mark.parametrize("calls", [1, 3])
async def test_recycling_over_http(start: Start, calls: int) -> None:
    """Ours: 200 when the models serve again; cycles are reported."""
    async with start(simulated={"vram_mb": {"a": 100}, "load_s": 0.3}) as neuron:
        for _ in range(2):
            await neuron.load("b")
            await neuron.post("/models/unload", {"model_id": "b"})
        await neuron.load("a")
        before = await neuron.get("/health")
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(neuron.post("/recycle", {})) for _ in range(calls)]
            async with asyncio.timeout(10):
                while not (await neuron.get("/health"))["recycling"]:
                    assert not any(answer.done() for answer in answers)
        after = await neuron.get("/health")
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()
        report = await neuron.model("a")

    assert [answer.result()[:2] for answer in answers] == [(200, {"status": "recycled"})] * calls
    assert (before["cycles"], after["cycles"]) == (2, 0)
    assert (before["recycling"], after["recycling"]) == (False, False)
    assert "neuron_recycles_total 1.0" in text
    assert report["status"] == "loaded"
