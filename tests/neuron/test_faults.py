"""What faults of devices do to engines."""

import asyncio

import pytest

from cortex_core.device import DeviceCondition, DeviceProcess, DeviceReading
from cortex_core.errors import ModelLoadFailedError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.recovery import FailureKind
from neuron.lifecycle.restoring import residents
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

    faults.review(poisoned(broken))
    faults.review(poisoned(broken))
    await settle()
    refused = await outcome_of(bench.load(C, 10, parallel=2))
    await bench.load(ModelId("d"), 10)

    # Not in vain: it may find room on the other device.
    assert bench.status(A) is ReplicaStatus.RECOVERING
    assert bench.status(B) is ReplicaStatus.LOADED
    assert isinstance(refused, ModelLoadFailedError)
    assert f"CUDA device {broken} is poisoned: it has to be reset" in refused.message
    assert bench.supervisor.state(ModelId("d")).devices == devices[B]


def poisoned(*devices: DeviceIndex) -> list[DeviceReading]:
    """Return readings of devices that nothing can run on."""
    return [
        DeviceReading(
            index=device, condition=DeviceCondition.POISONED, condition_reason="it has to be reset"
        )
        for device in devices
    ]


async def load_on(bench: Bench, model: ModelId, device: DeviceIndex) -> None:
    """Load a model that may be nowhere else."""
    life = await bench.supervisor.load(
        ModelSpec(model=model, harness="fake", devices=(device,), vram_bytes=10)
    )
    await asyncio.shield(life.loaded)


@pytest.mark.parametrize("when", ["loaded", "asleep", "waiting", "loading"])
async def test_model_without_another_device_fails_at_once(bench: Bench, when: str) -> None:
    """Issue 5: a device that is `poisoned` has its models move to `failed`."""
    await load_on(bench, A, FIRST)
    faults = DeviceFaults(bench.parts, bench.supervisor)
    if when == "asleep":
        await bench.supervisor.sleep(A, 1, 0)
    elif when != "loaded":
        bench.harness.may_load.clear()
        bench.harness.engines[0].die("killed")
        await bench.clock.advance(2 if when == "loading" else 0)
        await settle()
        assert bench.status(A) is ReplicaStatus.RECOVERING

    faults.review(poisoned(FIRST))
    await settle()

    state = bench.supervisor.state(A)
    assert (state.status, state.error_kind) == (ReplicaStatus.FAILED, FailureKind.CUDA)
    assert "CUDA device 0 is poisoned: it has to be reset" in (state.error or "")
    assert "given up" not in (state.error or "")
    bench.harness.may_load.set()
    await bench.clock.advance(70)
    assert (len(bench.harness.engines), bench.held()) == (1, [0, 0])


async def test_model_comes_back_when_its_device_is_well_again(bench: Bench) -> None:
    """Issue 5: with the next load, a program's too: it is not the model that failed."""
    await load_on(bench, A, FIRST)
    faults = DeviceFaults(bench.parts, bench.supervisor)
    faults.review(poisoned(FIRST))
    await bench.clock.advance(2)
    kept = residents(bench.supervisor.states(), ())

    faults.review([DeviceReading(index=FIRST, condition=DeviceCondition.OK)])
    life = await bench.supervisor.load(bench.supervisor.state(A).asked, is_automatic=True)
    await asyncio.shield(life.loaded)

    assert [spec.model for spec in kept] == [A]
    assert bench.status(A) is ReplicaStatus.LOADED


async def test_ends_on_a_broken_device_are_no_reason_to_start_afresh(bench: Bench) -> None:
    """Ours: a new process does not heal a device that has to be reset."""
    for model in (A, B, C):
        await load_on(bench, model, FIRST)
    faults = DeviceFaults(bench.parts, bench.supervisor)

    faults.review(poisoned(FIRST))
    await settle()
    faults.review(poisoned(FIRST))

    assert {state.status for state in bench.supervisor.states()} == {ReplicaStatus.FAILED}
    assert faults.lost == {}


async def test_model_on_a_device_that_is_gone_is_waited_for(bench: Bench) -> None:
    """Ours: a driver that is loaded anew has its devices back in a moment."""
    await load_on(bench, A, FIRST)
    faults = DeviceFaults(bench.parts, bench.supervisor)

    faults.review([DeviceReading(index=FIRST, condition=DeviceCondition.GONE)])
    await settle()
    waiting = bench.status(A)
    faults.review([DeviceReading(index=FIRST, condition=DeviceCondition.OK)])
    await bench.clock.advance(2)

    assert (waiting, bench.status(A)) == (ReplicaStatus.RECOVERING, ReplicaStatus.LOADED)
