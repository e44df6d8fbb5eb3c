"""The supervisor under any order of commands, faults and time: the books are always right."""

import asyncio
from typing import Literal, get_args

import msgspec
from hypothesis import given, settings, strategies as st

from cortex_core.errors import EngineError, RequestError
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from tests.fakes.clock import settle
from tests.neuron.bench import HOST_BYTES, Bench, outcome_of

SIZES = {ModelId("a"): 40, ModelId("b"): 60, ModelId("c"): 80}

Kind = Literal[
    "load",
    "unload",
    "sleep-1",
    "sleep-2",
    "wake",
    "ask",
    "die",
    "recycle",
    "hold",
    "let",
    "spoil",
    "pass",
]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happens, and how long nothing else does then."""

    kind: Kind
    model: ModelId
    then_s: float


moves = st.builds(
    Move,
    kind=st.sampled_from(get_args(Kind)),
    model=st.sampled_from(list(SIZES)),
    then_s=st.sampled_from([0.0, 0.0, 1.0, 7.0]),
)


BEGIN = [Move(kind="load", model=model, then_s=0.0) for model in SIZES]
"""Most of what can happen needs a model that is there."""


def _command(bench: Bench, move: Move) -> "asyncio.Task[RequestError | None] | None":
    """Start what takes time."""
    supervisor, model = bench.supervisor, move.model
    match move.kind:
        case "load":
            work = outcome_of(bench.load(model, SIZES[model]))
        case "unload":
            work = outcome_of(supervisor.unload(model, 3))
        case "sleep-1" | "sleep-2":
            work = outcome_of(supervisor.sleep(model, int(move.kind[-1]), 3))
        case "wake":
            work = outcome_of(bench.wake(model))
        case "ask":
            work = bench.ask(model)
        case "recycle":
            work = outcome_of(supervisor.recycle())
        case _:
            return None
    return bench.tasks.create_task(work)


def _interfere(bench: Bench, move: Move) -> None:
    """Do what happens at once, to every engine of the model that is up."""
    for engine in bench.harness.engines:
        if engine.spec.model != move.model or engine.is_closed:
            continue
        match move.kind:
            case "die":
                engine.die("killed")
            case "hold":
                engine.may_wake.clear()
            case "let":
                engine.may_wake.set()
            case "spoil":
                engine.wake_error = EngineError("broken")
            case _:
                pass


def _check(bench: Bench) -> None:
    assert all(held <= 100 for held in bench.held())
    assert bench.memory.sleep_budget.used_bytes <= HOST_BYTES
    alive = [engine for engine in bench.harness.engines if not engine.is_closed]
    assert len({engine.spec.model for engine in alive}) == len(alive)
    for state in bench.supervisor.states():
        engine = bench.supervisor.engine(state.asked.model)
        holding = bench.memory.budget.holdings.get(state.asked.model)
        if state.status is ReplicaStatus.LOADED:
            assert engine in alive
            assert holding is not None
            assert holding.size_bytes == SIZES[state.asked.model]
        if state.status is ReplicaStatus.SLEEPING:
            assert engine in alive
            assert holding is not None
            assert (holding.size_bytes, holding.awake_bytes) == (0, SIZES[state.asked.model])
        if state.status is ReplicaStatus.FAILED:
            assert state.sleep_level is None


async def _play(history: list[Move], *, is_patient: bool) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks)
        started = []
        for move in history:
            command = _command(bench, move)
            if command is not None:
                started.append(command)
            _interfere(bench, move)
            await settle()
            await bench.clock.advance(move.then_s)
            _check(bench)

        if is_patient:
            for engine in bench.harness.engines:
                engine.may_wake.set()
            await bench.clock.advance(300)
            _check(bench)
        # Requests hang until somebody cuts them; every command has ended.
        await bench.close()
        await bench.clock.advance(100)

        assert all(task.done() for task in started)
        assert bench.supervisor.states() == ()
        assert all(engine.is_closed for engine in bench.harness.engines)
        assert (bench.held(), bench.memory.sleep_budget.used_bytes) == ([0, 0], 0)


@settings(deadline=None)
@given(st.lists(moves, min_size=5, max_size=40), st.booleans())
def test_books_are_right_whatever_happens(history: list[Move], is_patient: bool) -> None:
    """Ours: one engine per model, nothing over-booked, every command ends, nothing is left."""
    asyncio.run(_play([*BEGIN, *history], is_patient=is_patient))
