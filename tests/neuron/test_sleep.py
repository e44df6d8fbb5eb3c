"""Sleeping and waking, at the supervisor: who joins, who waits, what is freed, what fails."""

import pytest

from cortex_core.errors import (
    ConflictError,
    EngineError,
    InsufficientSleepMemoryError,
    InsufficientVramError,
    InternalError,
    ModelLoadFailedError,
    ModelNotFoundError,
    NoReplicaError,
)
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of

A, B = ModelId("a"), ModelId("b")


async def test_sleep_frees_the_device_and_a_wake_takes_it_back(bench: Bench) -> None:
    """Ours: the ledger shows both, and the host memory meanwhile."""
    bench.harness.measured_bytes = 60
    await bench.load(A, 50)

    await bench.supervisor.sleep(A, 1, 0)

    assert (bench.status(A), bench.held()) == (ReplicaStatus.SLEEPING, [0, 0])
    assert bench.memory.sleep_budget.used_bytes == 50
    assert bench.supervisor.state(A).host_used_bytes == 50
    assert bench.harness.engines[0].sleep_level == 1

    await bench.wake(A)

    assert (bench.status(A), bench.held()) == (ReplicaStatus.LOADED, [60, 0])
    assert bench.memory.sleep_budget.used_bytes == 0
    assert len(bench.harness.specs) == 1


async def test_sleep_lets_requests_end_and_refuses_new_ones(bench: Bench) -> None:
    """Ours: the drain is bounded, and those that are refused may go elsewhere."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    sleep = bench.tasks.create_task(bench.supervisor.sleep(A, 1, 10))
    await bench.clock.advance(9)
    assert (request.done(), bench.harness.engines[0].sleep_level) == (False, None)
    assert isinstance(await bench.ask(A), NoReplicaError)

    await bench.clock.advance(2)
    await sleep

    error = await request
    assert isinstance(error, NoReplicaError)
    assert "put to sleep" in error.message
    refused = await bench.ask(A)
    assert isinstance(refused, NoReplicaError)
    assert (refused.status, refused.retry_after_s is not None) == (503, True)


async def test_commands_that_come_together_are_one(bench: Bench) -> None:
    """Ours: a sleep joins a sleep, a wake joins a wake and so does a load."""
    await bench.load(A)
    engine = bench.harness.engines[0]
    engine.may_wake.clear()
    sleeps = [bench.tasks.create_task(bench.supervisor.sleep(A, 1, 0)) for _ in range(5)]
    await settle()
    for sleep in sleeps:
        await sleep

    wakes = [bench.tasks.create_task(bench.wake(A)) for _ in range(5)]
    loads = [bench.tasks.create_task(bench.load(A)) for _ in range(5)]
    await settle()
    assert bench.status(A) is ReplicaStatus.LOADING
    engine.may_wake.set()
    for task in (*wakes, *loads):
        await task

    # Once when it was loaded, once when it was woken.
    assert (engine.checks, len(bench.harness.engines)) == (2, 1)
    await bench.wake(A)
    assert engine.checks == 2


async def test_wake_of_a_model_that_is_falling_asleep_waits_for_that(bench: Bench) -> None:
    """Ours: no conflict for what ends by itself."""
    await bench.load(A)
    engine = bench.harness.engines[0]
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    sleep = bench.tasks.create_task(bench.supervisor.sleep(A, 2, 5))
    await settle()
    wake = bench.tasks.create_task(bench.wake(A))
    await settle()
    assert not wake.done()

    await bench.clock.advance(6)
    await sleep
    await wake
    await request

    assert (bench.status(A), engine.checks) == (ReplicaStatus.LOADED, 2)


async def test_wake_without_device_memory_is_refused_and_the_model_sleeps_on(bench: Bench) -> None:
    """Ours: 507, and a later wake works."""
    for model in (A, B):
        await bench.load(model, 80)
    await bench.supervisor.sleep(A, 1, 0)
    await bench.load(ModelId("c"), 80)

    error = await outcome_of(bench.wake(A))

    assert isinstance(error, InsufficientVramError)
    assert (error.status, error.needed_bytes, error.free_bytes) == (507, 80, 20)
    assert (bench.status(A), bench.held()) == (ReplicaStatus.SLEEPING, [80, 80])
    await bench.supervisor.unload(ModelId("c"), 0)
    await bench.wake(A)
    assert bench.held() == [80, 80]


async def test_wake_waits_for_memory_that_a_sleep_will_free(bench: Bench) -> None:
    """Ours: one gives way to the other, whoever asks first."""
    await bench.load(A, 80)
    await bench.supervisor.sleep(A, 2, 0)
    await bench.load(B, 80)
    await bench.load(ModelId("c"), 80)
    on_device = bench.supervisor.state(A).devices
    rival = next(m for m in (B, ModelId("c")) if bench.supervisor.state(m).devices == on_device)
    request = bench.tasks.create_task(bench.ask(rival))
    await settle()

    sleep = bench.tasks.create_task(bench.supervisor.sleep(rival, 1, 3))
    await settle()
    wake = bench.tasks.create_task(bench.wake(A))
    await settle()
    progress = bench.supervisor.state(A).progress
    assert progress is not None
    assert progress.stage == "memory"
    await bench.clock.advance(4)
    await sleep
    await wake
    await request

    assert bench.status(A) is ReplicaStatus.LOADED
    assert bench.status(rival) is ReplicaStatus.SLEEPING


async def test_host_memory_is_a_budget_too(bench: Bench) -> None:
    """Ours: 507 before anything is drained; level 2 needs none of it."""
    for model in (A, B):
        bench.harness.measured_bytes = 60
        await bench.load(model, 60)
    await bench.supervisor.sleep(A, 1, 0)

    error = await outcome_of(bench.supervisor.sleep(B, 1, 0))

    assert isinstance(error, InsufficientSleepMemoryError)
    assert (error.needed_bytes, error.free_bytes) == (60, 40)
    assert bench.status(B) is ReplicaStatus.LOADED
    await bench.supervisor.sleep(B, 2, 0)
    assert bench.memory.sleep_budget.used_bytes == 60
    await bench.supervisor.unload(A, 0)
    assert bench.memory.sleep_budget.used_bytes == 0


async def test_unload_of_a_sleeping_model_closes_its_engine(bench: Bench) -> None:
    """Ours: nothing of it stays, on the device or in the host."""
    await bench.load(A)
    await bench.supervisor.sleep(A, 1, 0)

    await bench.supervisor.unload(A, 30)

    assert bench.supervisor.states() == ()
    assert bench.harness.engines[0].is_closed
    assert bench.memory.sleep_budget.used_bytes == 0


@pytest.mark.parametrize("doing", ["sleep", "wake"])
async def test_unload_during_a_sleep_or_a_wake_ends_both(bench: Bench, doing: str) -> None:
    """Ours: whoever waits for the sleep or the wake is told."""
    await bench.load(A)
    engine = bench.harness.engines[0]
    engine.may_wake.clear()
    if doing == "sleep":
        engine.may_sleep.clear()
    work = bench.tasks.create_task(outcome_of(bench.supervisor.sleep(A, 1, 0)))
    await settle()
    if doing == "wake":
        await work
        work = bench.tasks.create_task(outcome_of(bench.wake(A)))
        await settle()

    await bench.supervisor.unload(A, 0)

    assert isinstance(await work, ConflictError)
    assert (bench.supervisor.states(), bench.held()) == ((), [0, 0])
    assert engine.is_closed


@pytest.mark.parametrize(
    ("error", "kind"), [(EngineError("broken"), EngineError), (KeyError("secret"), InternalError)]
)
async def test_engine_that_does_not_fall_asleep_is_closed(
    bench: Bench, error: Exception, kind: type[Exception]
) -> None:
    """Ours: half asleep is of no use; the model is gone and can be loaded again."""
    await bench.load(A)
    bench.harness.engines[0].sleep_error = error

    outcome = await outcome_of(bench.supervisor.sleep(A, 1, 0))
    await bench.clock.advance(2)

    assert isinstance(outcome, kind)
    assert "secret" not in outcome.message
    assert (bench.supervisor.has(A), bench.held()) == (False, [0, 0])
    assert bench.memory.sleep_budget.used_bytes == 0
    assert bench.harness.engines[0].is_closed
    await bench.load(A)


async def test_engine_that_takes_too_long_to_fall_asleep_is_given_up(bench: Bench) -> None:
    """Ours: a sleep always ends."""
    await bench.load(A)
    bench.harness.engines[0].may_sleep.clear()

    outcome = await outcome_of(bench.supervisor.sleep(A, 1, 0))

    assert isinstance(outcome, EngineError)
    assert "in time" in outcome.message


@pytest.mark.parametrize(
    "error", [InsufficientVramError("no", needed_bytes=1, free_bytes=0), ZeroDivisionError()]
)
async def test_engine_that_does_not_wake_is_replaced(bench: Bench, error: Exception) -> None:
    """Ours: also when it says that it has no memory: it has begun to take some."""
    await bench.load(A)
    await bench.supervisor.sleep(A, 1, 0)
    bench.harness.engines[0].wake_error = error

    assert await outcome_of(bench.wake(A)) is not None
    recovering = bench.status(A)
    await bench.clock.advance(2)

    assert (recovering, bench.status(A)) == (ReplicaStatus.RECOVERING, ReplicaStatus.LOADED)
    assert sum(bench.held()) == 10
    assert [engine.is_closed for engine in bench.harness.engines] == [True, False]


async def test_wrong_answer_after_a_wake_is_the_end_of_the_engine(bench: Bench) -> None:
    """Ours: nobody is served by weights that came back broken."""
    await bench.load(A)
    await bench.supervisor.sleep(A, 1, 0)
    bench.harness.engines[0].check_error = ModelLoadFailedError("broken")

    assert isinstance(await outcome_of(bench.wake(A)), ModelLoadFailedError)
    state = bench.supervisor.state(A)
    await bench.clock.advance(2)

    assert (state.status, state.error) == (ReplicaStatus.RECOVERING, "broken")
    assert bench.status(A) is ReplicaStatus.LOADED
    assert [engine.is_closed for engine in bench.harness.engines] == [True, False]


async def test_wrong_answer_after_a_load_fails_the_load(bench: Bench) -> None:
    """Ours: the engine is closed and its memory free before anybody is told."""
    bench.harness.check_error = ModelLoadFailedError("broken")

    assert isinstance(await outcome_of(bench.load(A)), ModelLoadFailedError)

    assert (bench.status(A), bench.held()) == (ReplicaStatus.FAILED, [0, 0])
    assert bench.harness.engines[0].is_closed


@pytest.mark.parametrize("doing", ["asleep", "falling asleep", "waking"])
async def test_engine_that_dies_at_any_point_of_its_sleep_is_noticed(
    bench: Bench, doing: str
) -> None:
    """Ours: a process may be killed while it sleeps; nobody finds out at the next request only."""
    await bench.load(A)
    engine = bench.harness.engines[0]
    if doing == "falling asleep":
        engine.may_sleep.clear()
    engine.may_wake.clear()
    work = bench.tasks.create_task(outcome_of(bench.supervisor.sleep(A, 1, 0)))
    await settle()
    if doing == "waking":
        work = bench.tasks.create_task(outcome_of(bench.wake(A)))
        await settle()

    engine.die("killed")
    await bench.clock.advance(2)

    outcome = await work
    assert isinstance(outcome, EngineError) == (doing != "asleep")
    assert outcome is None or "killed" in outcome.message
    assert bench.supervisor.has(A) == (doing == "waking")
    assert (sum(bench.held()), bench.memory.sleep_budget.used_bytes) == (
        10 if doing == "waking" else 0,
        0,
    )
    assert engine.is_closed


async def test_caller_who_leaves_does_not_take_the_sleep_or_the_wake_with_it(bench: Bench) -> None:
    """Ours: somebody else may wait for the same."""
    await bench.load(A)
    engine = bench.harness.engines[0]
    engine.may_wake.clear()
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    leaver = bench.tasks.create_task(bench.supervisor.sleep(A, 1, 1))
    await settle()
    leaver.cancel()
    await bench.clock.advance(2)
    await request
    assert bench.status(A) is ReplicaStatus.SLEEPING

    leaver = bench.tasks.create_task(bench.wake(A))
    await settle()
    leaver.cancel()
    engine.may_wake.set()
    await settle()

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_commands_for_a_model_that_is_not_there_are_not_found(bench: Bench) -> None:
    """Ours: 404 for both."""
    assert isinstance(await outcome_of(bench.supervisor.sleep(A, 1, 0)), ModelNotFoundError)
    assert isinstance(await outcome_of(bench.wake(A)), ModelNotFoundError)
