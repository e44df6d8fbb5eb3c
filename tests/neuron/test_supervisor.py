"""The supervisor over a harness with every fault, on a clock that stands still."""

import pytest

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    EngineError,
    InsufficientVramError,
    InternalError,
    ModelNotFoundError,
)
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.settings import DefaultModel
from neuron.supervisor.activation import Activator
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of

A, B = ModelId("a"), ModelId("b")


async def test_estimate_is_reserved_then_measured_then_released(bench: Bench) -> None:
    """Ours: the ledger follows the life."""
    bench.harness.may_load.clear()
    bench.harness.measured_bytes = 30
    load = bench.tasks.create_task(bench.load(A, 40))
    await settle()
    assert bench.held() == [40, 0]
    bench.harness.may_load.set()
    await load
    assert bench.held() == [30, 0]

    await bench.supervisor.unload(A, 0)

    assert bench.held() == [0, 0]


async def test_load_that_is_given_up_before_it_has_begun_ends(bench: Bench) -> None:
    """Ours: two commands may be taken up in one round of the event loop."""
    life = await bench.supervisor.load(ModelSpec(model=A, harness="fake", vram_bytes=10))
    await bench.supervisor.unload(A, 0)

    assert isinstance(life.loaded.exception(), ConflictError)
    assert bench.supervisor.states() == ()
    assert bench.held() == [0, 0]


async def test_model_over_two_devices_gets_both_and_shares_its_memory(bench: Bench) -> None:
    """Ours: rank order, an even share on each, the size told to the engine."""
    await bench.load(A, 50, parallel=2)

    assert bench.harness.specs[0].devices == (0, 1)
    assert bench.harness.specs[0].tensor_parallel == 2
    assert bench.held() == [25, 25]


async def test_two_loads_that_fit_only_one_after_the_other_never_overbook(bench: Bench) -> None:
    """Ours: the reservation is taken before anything is waited for."""
    bench.harness.may_load.clear()
    loads = [
        bench.tasks.create_task(outcome_of(bench.load(ModelId(f"m{number}"), 60)))
        for number in range(4)
    ]
    await settle()
    bench.harness.may_load.set()
    outcomes = [await load for load in loads]

    assert [type(outcome) for outcome in outcomes].count(type(None)) == 2
    assert [type(outcome) for outcome in outcomes].count(InsufficientVramError) == 2
    assert bench.held() == [60, 60]


async def test_bug_in_a_harness_fails_the_load_and_nothing_else(bench: Bench) -> None:
    """Ours: the caller gets no internals, the memory is free, the daemon lives."""
    bench.harness.load_error = ZeroDivisionError("secret")
    with pytest.raises(InternalError) as raised:
        await bench.load(A)
    assert "secret" not in raised.value.message
    assert bench.status(A) is ReplicaStatus.FAILED
    assert bench.held() == [0, 0]
    bench.harness.load_error = None

    await bench.load(A)

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_engine_that_dies_silently_has_its_requests_ended(bench: Bench) -> None:
    """Ours: an engine that says nothing to its requests leaves none behind."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    assert bench.supervisor.state(A).in_flight == 1

    bench.harness.may_load.clear()
    bench.harness.engines[0].die("out of memory")
    await bench.clock.advance(0.9)
    assert (bench.status(A), bench.held()) == (ReplicaStatus.RECOVERING, [10, 0])
    await bench.clock.advance(0.1)

    error = await request
    assert isinstance(error, EngineError)
    assert error.message == "out of memory"
    assert bench.supervisor.state(A).in_flight == 0
    bench.harness.may_load.set()
    await bench.clock.advance(1)
    assert bench.harness.engines[0].is_closed


async def test_reload_waits_until_the_dead_engine_is_gone(bench: Bench) -> None:
    """Ours: two engines of one model never hold the device together."""
    await bench.load(A, 80)
    dead = bench.harness.engines[0]
    dead.may_close.clear()
    dead.die("dead")
    await settle()
    load = bench.tasks.create_task(bench.load(A, 80))
    await settle()
    assert len(bench.harness.specs) == 1

    dead.may_close.set()
    await bench.clock.advance(2)
    await load

    assert dead.is_closed
    assert bench.held() == [80, 0]


async def test_engine_that_does_not_close_is_given_up(bench: Bench) -> None:
    """Ours: an unload always ends."""
    await bench.load(A)
    bench.harness.engines[0].may_close.clear()

    await bench.supervisor.unload(A, 0)

    assert bench.supervisor.states() == ()


async def test_engine_that_fails_to_close_is_gone_all_the_same(bench: Bench) -> None:
    """Ours: likewise."""
    await bench.load(A)
    bench.harness.engines[0].close_error = OSError("x")

    await bench.supervisor.unload(A, 0)

    assert (bench.supervisor.states(), bench.held()) == ((), [0, 0])


@pytest.mark.parametrize("obeys", [True, False])
async def test_unload_of_a_loading_model_leaves_no_engine(bench: Bench, obeys: bool) -> None:
    """Ours: also when the harness finishes a load that it was told to stop."""
    bench.harness.may_load.clear()
    bench.harness.obeys_cancel = obeys
    load = bench.tasks.create_task(outcome_of(bench.load(A)))
    await settle()

    await bench.supervisor.unload(A, 0)

    assert isinstance(await load, ConflictError)
    assert (bench.supervisor.states(), bench.held()) == ((), [0, 0])
    assert all(engine.is_closed for engine in bench.harness.engines)


async def test_drain_of_an_unload_ends_in_time_and_a_second_one_may_hasten_it(
    bench: Bench,
) -> None:
    """Ours: the shorter bound counts."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    first = bench.tasks.create_task(bench.supervisor.unload(A, 100))
    await bench.clock.advance(5)
    assert bench.status(A) is ReplicaStatus.UNLOADING
    second = bench.tasks.create_task(bench.supervisor.unload(A, 10))
    await bench.clock.advance(9)
    assert not request.done()

    await bench.clock.advance(2)
    await first
    await second

    assert request.done()
    assert bench.clock.now() < 20


async def test_load_of_a_model_that_is_being_unloaded_waits_for_it(bench: Bench) -> None:
    """Ours: no conflict for what ends by itself."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    unload = bench.tasks.create_task(bench.supervisor.unload(A, 5))
    await settle()
    load = bench.tasks.create_task(bench.load(A))
    await bench.clock.advance(6)
    await unload
    await load
    await request

    assert bench.status(A) is ReplicaStatus.LOADED
    assert len(bench.harness.engines) == 2


async def test_loads_on_one_device_go_one_after_the_other(bench: Bench) -> None:
    """Ours: two engines that measure a device at once measure each other."""
    bench.harness.may_load.clear()
    first = bench.tasks.create_task(bench.load(A, 60))
    await settle()
    second = bench.tasks.create_task(bench.load(B, 30))
    await settle()
    # The fullest device that has room is the one on which A loads.
    assert [spec.model for spec in bench.harness.specs] == [A]

    bench.harness.may_load.set()
    await first
    await second

    assert [spec.devices for spec in bench.harness.specs] == [(0,), (0,)]


async def test_going_down_ends_everything(bench: Bench) -> None:
    """Ours: requests get an error, loads are undone, engines closed, memory free."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    bench.harness.may_load.clear()
    load = bench.tasks.create_task(outcome_of(bench.load(B)))
    await settle()

    closing = bench.tasks.create_task(bench.supervisor.close())
    await bench.clock.advance(10)
    await closing

    assert isinstance(await request, DrainingError)
    assert isinstance(await load, DrainingError)
    assert isinstance(await bench.ask(A), DrainingError)
    assert isinstance(await outcome_of(bench.load(A)), DrainingError)
    assert (bench.supervisor.states(), bench.held()) == ((), [0, 0])
    assert all(engine.is_closed for engine in bench.harness.engines)


async def test_activation_that_is_stopped_leaves_its_load_to_others(bench: Bench) -> None:
    """Ours: whoever joined the load of a default model gets its outcome."""
    bench.harness.may_load.clear()
    model = DefaultModel(model_id=A, harness="fake")
    activator = Activator((model,), bench.supervisor, lambda: None, bench.clock)
    activation = bench.tasks.create_task(activator.run())
    await settle()
    joined = bench.tasks.create_task(outcome_of(bench.load(A)))
    await settle()

    activation.cancel()
    await settle()
    bench.harness.may_load.set()

    assert await joined is None
    assert bench.status(A) is ReplicaStatus.LOADED


async def test_unknown_model_is_not_found(bench: Bench) -> None:
    """Ours: for requests and commands alike."""
    assert isinstance(await bench.ask(A), ModelNotFoundError)
    with pytest.raises(ModelNotFoundError):
        await bench.supervisor.unload(A, 0)


async def test_every_change_is_told_in_order(bench: Bench) -> None:
    """Ours: what the event stream is made of."""
    await bench.load(A)
    await bench.supervisor.unload(A, 0)

    told = list(dict.fromkeys(status for _, status in bench.changes))
    assert told == ["loading", "loaded", "unloading", None]
