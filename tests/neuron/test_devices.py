"""Device workers, background readings, memory that comes back, declared and driver's devices."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.errors import InsufficientVramError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from neuron.devices.nvml import NvmlSource
from neuron.devices.readings import DeviceMonitor
from neuron.devices.workers import DeviceWorkers
from neuron.ports import DeviceFacts
from neuron.supervisor.memory import Memory
from tests.fakes.clock import FakeClock, settle
from tests.fakes.nvml import GIB, FakeCard, FakeNvml, NVMLError_LibRmVersionMismatch
from tests.neuron.conftest import PATIENCE_S, Start

groups = st.lists(
    st.lists(st.integers(0, 3), max_size=4, unique=True).map(tuple), min_size=1, max_size=12
)


async def _hold_all(wanted: list[tuple[int, ...]]) -> tuple[int, int]:
    """Hold all groups at once; return how many got through and the worst sharing seen."""
    held = dict.fromkeys(range(4), 0)
    worst = through = 0

    async def one(devices: tuple[int, ...]) -> None:
        nonlocal worst, through
        async with workers.hold(tuple(DeviceIndex(index) for index in devices)):
            for index in devices:
                held[index] += 1
            worst = max(worst, *held.values())
            await asyncio.sleep(0)
            for index in devices:
                held[index] -= 1
            through += 1

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        workers = DeviceWorkers([DeviceIndex(index) for index in range(4)], tasks)
        async with asyncio.TaskGroup() as holders:
            for devices in wanted:
                holders.create_task(one(devices))
        workers.close()
    return through, worst


@given(groups)
def test_groups_of_devices_never_share_and_never_wait_for_each_other(
    wanted: list[tuple[int, ...]],
) -> None:
    """Ours: serial per device, without deadlock over groups."""
    through, worst = asyncio.run(_hold_all(wanted))

    assert through == len(wanted)
    assert worst <= 1


async def _hold_some(wanted: list[tuple[int, ...]], leavers: list[tuple[int, bool]]) -> list[int]:
    """Hold groups, let some leave in their turn or before it; return who got through."""
    through: list[int] = []

    async def one(number: int, devices: tuple[int, ...]) -> None:
        async with workers.hold(tuple(DeviceIndex(index) for index in devices)):
            await asyncio.sleep(0)
            through.append(number)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        workers = DeviceWorkers([DeviceIndex(index) for index in range(4)], tasks)
        holders = [tasks.create_task(one(*entry)) for entry in enumerate(wanted)]
        for number, waits in leavers:
            if waits:
                await asyncio.sleep(0)
            holders[number % len(holders)].cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        assert all(workers.held(DeviceIndex(index)) is None for index in range(4))
        workers.close()
    cancelled = [number for number, holder in enumerate(holders) if holder.cancelled()]
    return sorted(through + [number for number in cancelled if number not in through])


@given(groups, st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=8))
def test_groups_get_on_whoever_leaves_and_whenever(
    wanted: list[tuple[int, ...]], leavers: list[tuple[int, bool]]
) -> None:
    """Ours: a cancelled holder of half a group leaves nothing behind that others wait for."""
    assert asyncio.run(_hold_some(wanted, leavers)) == list(range(len(wanted)))


async def test_holder_that_gives_up_its_turn_holds_nobody_up() -> None:
    """Ours: a cancelled load leaves no trace in the mailbox."""
    device = (DeviceIndex(0),)
    order: list[str] = []

    async def hold(name: str) -> None:
        async with workers.hold(device):
            order.append(name)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        workers = DeviceWorkers(device, tasks)
        async with workers.hold(device):
            second = tasks.create_task(hold("second"))
            third = tasks.create_task(hold("third"))
            await settle()
            second.cancel()
            await settle()
            assert order == []
            # The one that gave up is passed over when its turn comes.
            assert workers.waiting(device[0]) == 2
        await third
        assert workers.waiting(device[0]) == 0
        workers.close()

    assert order == ["third"]


async def test_workers_are_named_after_their_device() -> None:
    """Ours: one worker per device, `cuda-dev-N`."""
    async with asyncio.TaskGroup() as tasks:
        workers = DeviceWorkers([DeviceIndex(0), DeviceIndex(3)], tasks)
        names = {task.get_name() for task in asyncio.all_tasks()}
        workers.close()

    assert {"cuda-dev-0", "cuda-dev-3"} <= names


class StuckSource:
    """A driver that stops to answer."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.reading = DeviceReading(index=DeviceIndex(0), vram_used_bytes=4, temp_c=50)

    def discover(self) -> DeviceFacts:
        return DeviceFacts(devices=(_device(10),))

    def read(self) -> tuple[DeviceReading, ...]:
        self.may_answer.wait(PATIENCE_S)
        return (self.reading,)

    def listen(self, on_xid: Callable[[DeviceIndex, int], None]) -> None:
        pass

    def close(self) -> None:
        pass


def _device(total: int) -> Device:
    return Device(index=DeviceIndex(0), name="d", vram_total_bytes=total)


async def test_driver_that_stops_to_answer_makes_readings_unknown_and_nobody_wait() -> None:
    """Ours: `/health` has the last reading at once, and none when it is too old."""
    clock, source = FakeClock(), StuckSource()
    monitor = DeviceMonitor(source, clock, 1.0)
    await monitor.discover()
    assert monitor.latest()[0].temp_c == 50
    source.may_answer.clear()
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(monitor.run(lambda: None, lambda device, xid: None))
        await clock.advance(5)
        fresh = monitor.latest()
        await clock.advance(10)
        stale = monitor.latest()
        watch.cancel()
    source.may_answer.set()
    monitor.close()

    assert fresh[0].temp_c == 50
    assert stale[0].temp_c is None
    assert stale[0].condition is DeviceCondition.UNKNOWN
    assert stale[0].condition_reason == "the driver has not answered for 10 readings"


async def test_health_and_discovery_show_what_the_driver_says(start: Start) -> None:
    """Ours: a card with gaps is shown with gaps."""
    cards = [FakeCard("L4", used=6 * GIB, busy=25), FakeCard("GB10", total=None, busy=None)]
    async with start(source=NvmlSource(FakeNvml(cards)), devices=[]) as neuron:
        found = await neuron.get("/discovery")
        health = await neuron.get("/health")
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    assert [device["vram_total_mb"] for device in found["devices"]] == [24 << 10, None]
    assert (found["driver_version"], found["cuda_version"]) == ("570.124.06", "12.8")
    assert found["cuda_unavailable_reason"] is None
    known = {name: value for name, value in health["devices"][0].items() if value is not None}
    assert known == {
        "index": 0,
        "condition": "ok",
        "xids": [],
        "other_mb": 6 << 10,
        "memory_busy_pct": 12.0,
        "vram_used_mb": 6 << 10,
        "vram_free_mb": 18 << 10,
        "utilization_pct": 25.0,
        "temp_c": 40.0,
        "leaked_mb": 0,
    }
    assert health["devices"][1]["vram_used_mb"] is None
    assert 'neuron_device_utilization_ratio{device="0"} 0.25' in text


async def test_node_whose_driver_is_broken_says_so_and_serves(start: Start) -> None:
    """Ours: lesson 62, detect and report."""
    nvml = FakeNvml(init_error=NVMLError_LibRmVersionMismatch("mismatch"))
    async with start(source=NvmlSource(nvml), devices=[]) as neuron:
        found = await neuron.get("/discovery")
        await neuron.load("a")

    assert "different versions" in found["cuda_unavailable_reason"]
    assert found["devices"] == []


class NotingClock(FakeClock):
    """Tells that somebody went to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.has_slept = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.has_slept.set()
        await super().sleep(seconds)


async def test_unload_ends_when_the_driver_shows_the_memory_free() -> None:
    """Given: `unloaded` means that the memory is there."""
    clock = NotingClock()
    card = FakeCard(used=10 * GIB)
    monitor = DeviceMonitor(NvmlSource(FakeNvml([card])), clock, 1.0)
    memory = Memory(await monitor.discover(), monitor, clock, 1.0)
    spec = ModelSpec(model=ModelId("a"), harness="h", vram_bytes=8 * GIB)
    await memory.reserve(spec, lambda: None)
    await memory.measure(spec.model, 8 * GIB, {})
    closed = asyncio.Event()

    async def close() -> None:
        async with memory.settled(spec.model):
            closed.set()

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(close())
        await closed.wait()
        # The reading that finds the memory still taken comes from a thread.
        await clock.has_slept.wait()
        assert not task.done()
        card.used = 2 * GIB
        await clock.advance(0.2)
        await task
    monitor.close()

    assert clock.now() < 1


async def test_unload_ends_although_the_driver_does_not_answer() -> None:
    """Ours: a stuck driver must not keep a model's name and place for ever."""
    clock, source = FakeClock(), StuckSource()
    monitor = DeviceMonitor(source, clock, 1.0, timeout_s=0.01)
    memory = Memory(await monitor.discover(), monitor, clock, 1.0)
    spec = ModelSpec(model=ModelId("a"), harness="h", vram_bytes=8)
    await memory.reserve(spec, lambda: None)
    await memory.measure(spec.model, 8, {})
    source.may_answer.clear()

    async with asyncio.timeout(PATIENCE_S), memory.settled(spec.model):
        is_closed = True
    source.may_answer.set()
    monitor.close()

    assert is_closed


async def test_reservation_waits_no_longer_than_told() -> None:
    """Ours: memory that is promised and does not come is insufficient memory."""
    clock = FakeClock()
    memory = Memory(DeviceFacts(devices=(_device(10),), is_declared=True), None, clock, 30.0)
    one = ModelSpec(model=ModelId("a"), harness="h", vram_bytes=8)
    two = ModelSpec(model=ModelId("b"), harness="h", vram_bytes=8)
    await memory.reserve(one, lambda: None)
    waits = []
    with pytest.raises(InsufficientVramError):
        await memory.reserve(two, lambda: waits.append(1))
    assert waits == []
    memory.will_free(one.model)

    async def refused() -> bool:
        try:
            await memory.reserve(two, lambda: waits.append(1))
        except InsufficientVramError:
            return True
        return False

    async with asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(refused())
        await clock.advance(29)
        assert not waiter.done()
        await clock.advance(2)

    assert waiter.result()
    assert waits == [1]


async def test_device_that_cannot_be_used_is_not_well_when_the_driver_hangs() -> None:
    """Ours: a card that falls off the bus often takes the driver along."""
    clock, source = FakeClock(), StuckSource()
    monitor = DeviceMonitor(source, clock, 1.0)
    source.reading = DeviceReading(
        index=DeviceIndex(0), condition=DeviceCondition.GONE, condition_reason="off the bus"
    )
    await monitor.discover()
    source.may_answer.clear()
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(monitor.run(lambda: None, lambda device, xid: None))
        await clock.advance(20)
        (stale,) = monitor.latest()
        watch.cancel()
    source.may_answer.set()
    monitor.close()

    assert stale == source.reading
