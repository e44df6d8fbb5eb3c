"""What faults of devices do to engines."""

import pytest

from cortex_core.device import DeviceCondition, DeviceProcess, DeviceReading
from cortex_core.errors import ModelLoadFailedError
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.supervisor.faults import DeviceFaults
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of

A, B, C = (ModelId(name) for name in "abc")
FIRST = DeviceIndex(0)


def reading(*pids: int) -> DeviceReading:
    """Return a reading of the first device, which these processes have open."""
    return DeviceReading(index=FIRST, processes=tuple(DeviceProcess(pid=pid) for pid in pids))


async def loaded(bench: Bench, model: ModelId, *pids: int) -> None:
    """Load a model whose engine has these processes."""
    await bench.load(model)
    bench.harness.engines[-1].process_ids = frozenset(pids)


async def test_engine_that_has_a_device_for_itself_ends_with_its_program_s_fault(
    bench: Bench,
) -> None:
    """NVIDIA's catalogue, RESTART_APP: and there is only one program."""
    await loaded(bench, A, 7, 8)
    faults = DeviceFaults(bench.parts, bench.supervisor)

    faults.reported(FIRST, 31, reading(8))
    await settle()

    assert "Xid 31" in (bench.harness.engines[0].failure or "")
    assert bench.status(A) is ReplicaStatus.RECOVERING


@pytest.mark.parametrize("pids", [(), (8, 99)], ids=["not known", "a stranger"])
async def test_engine_goes_on_where_the_fault_may_be_another_program_s(
    bench: Bench, pids: tuple[int, ...]
) -> None:
    """Ours: containment; the one that was hit ends by itself."""
    await loaded(bench, A, 8)
    faults = DeviceFaults(bench.parts, bench.supervisor)

    faults.reported(FIRST, 31, reading(*pids))
    await settle()

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_two_engines_on_one_device_go_on(bench: Bench) -> None:
    """Ours: containment, likewise."""
    await loaded(bench, A, 8)
    await loaded(bench, B, 9)
    faults = DeviceFaults(bench.parts, bench.supervisor)

    faults.reported(FIRST, 31, reading(8, 9))
    await settle()

    assert {bench.status(A), bench.status(B)} == {ReplicaStatus.LOADED}


async def test_engines_on_a_broken_device_end_and_nothing_is_loaded_there(bench: Bench) -> None:
    """Issue 5: `poisoned`; a model that names no device goes to another."""
    await bench.load(A, 100)
    await bench.load(B, 50)
    faults = DeviceFaults(bench.parts, bench.supervisor)
    devices = {model: bench.supervisor.state(model).devices for model in (A, B)}
    (broken,) = devices[A]
    poisoned = DeviceReading(
        index=broken, condition=DeviceCondition.POISONED, condition_reason="it has to be reset"
    )

    faults.review([poisoned])
    faults.review([poisoned])
    await settle()
    refused = await outcome_of(bench.load(C, 10, parallel=2))
    await bench.load(ModelId("d"), 10)

    assert bench.status(A) is ReplicaStatus.RECOVERING
    assert bench.status(B) is ReplicaStatus.LOADED
    assert isinstance(refused, ModelLoadFailedError)
    assert f"CUDA device {broken} is poisoned: it has to be reset" in refused.message
    assert bench.supervisor.state(ModelId("d")).devices == devices[B]
