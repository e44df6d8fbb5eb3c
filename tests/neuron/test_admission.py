"""Requests before an engine: in line, let in, sent away; whatever happens, every count is right."""

import asyncio
from typing import Literal, get_args

import msgspec
from hypothesis import given, settings, strategies as st

from cortex_core.errors import RequestError
from cortex_core.harness import Bounds, EngineLoad, ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.settings import AdmissionSettings
from neuron.supervisor.admission import LOOK_AGAIN_S
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of

A = ModelId("a")

PLACES = 3
QUEUE = 4
WAIT_S = 20.0

ENDS = {
    "server_is_overloaded",
    "draining",
    "no_replica",
    "recovering",
    "model_loading",
    "model_load_failed",
    "model_not_found",
    "engine_error",
}
"""Codes of what a gateway may send elsewhere, and of what was cut under way; nothing else."""

Kind = Literal[
    "join",
    "join",
    "leave",
    "answer",
    "die",
    "unload",
    "load",
    "sleep",
    "wake",
    "press",
    "relax",
    "pass",
]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happens."""

    kind: Kind
    caller: str
    which: int
    then_s: float


moves = st.builds(
    Move,
    kind=st.sampled_from(get_args(Kind)),
    caller=st.sampled_from("xyz"),
    which=st.integers(0, 20),
    then_s=st.sampled_from([0.0, 0.0, 0.3, 7.0]),
)

BEGIN = [Move(kind="join", caller=caller, which=0, then_s=0.0) for caller in "xyxyz"]
"""Most of what can go wrong needs somebody who waits."""

Ask = asyncio.Task[RequestError | None]


def _command(bench: Bench, move: Move) -> Ask | None:
    """Start what takes time."""
    supervisor = bench.supervisor
    match move.kind:
        case "unload":
            work = outcome_of(supervisor.unload(A, 3))
        case "load":
            work = outcome_of(bench.load(A, 40))
        case "sleep":
            work = outcome_of(supervisor.sleep(A, 1, 3))
        case "wake":
            work = outcome_of(bench.wake(A))
        case _:
            return None
    return bench.tasks.create_task(work)


def _interfere(bench: Bench, move: Move, asks: list[Ask]) -> None:
    """Do what happens at once."""
    engine = bench.harness.engines[-1]
    running = [task for task in asks if not task.done()]
    match move.kind:
        case "join":
            asks.append(bench.tasks.create_task(bench.ask(A, move.caller)))
        case "leave" if running:
            running[move.which % len(running)].cancel()
        case "answer":
            engine.answer()
        case "die" if not engine.is_closed:
            engine.die("killed")
        case "press":
            engine.busy = EngineLoad(waiting=1, kv_cache_usage=1.0)
        case "relax":
            engine.busy = EngineLoad()
        case _:
            pass


def _check(bench: Bench, asks: list[Ask]) -> None:
    open_asks = sum(not task.done() for task in asks)
    if not bench.supervisor.has(A):
        return
    state, waiting = bench.supervisor.state(A), bench.supervisor.waiting(A)
    assert state.in_flight + waiting <= open_asks
    assert state.in_flight <= PLACES
    assert waiting <= QUEUE
    if state.status is ReplicaStatus.LOADED:
        assert state.in_flight + waiting == open_asks
        engine = bench.supervisor.engine(A)
        assert engine is not None
        if waiting and not engine.load().waiting:
            assert state.in_flight == PLACES
    else:
        assert waiting == 0


async def _play(history: list[Move]) -> None:
    admission = AdmissionSettings(max_queue=QUEUE, max_wait_s=WAIT_S, max_share=0.5)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, admission=admission)
        bench.harness.max_in_flight = PLACES
        await bench.load(A, 40)
        asks: list[Ask] = []
        commands: list[Ask] = []
        for move in history:
            command = _command(bench, move)
            if command is not None:
                commands.append(command)
            _interfere(bench, move, asks)
            await settle()
            # An engine that has room again is found so when it is looked at.
            least_s = LOOK_AGAIN_S if move.kind == "relax" else 0.0
            await bench.clock.advance(max(move.then_s, least_s))
            _check(bench, asks)

        bench.supervisor.start_draining()
        await settle()
        assert bench.supervisor.waiting(A) == 0
        await bench.close()
        await bench.clock.advance(100)

        assert all(task.done() for task in (*asks, *commands))
        codes = {
            error.code
            for task in asks
            if not task.cancelled() and (error := task.result()) is not None
        }
        assert codes <= ENDS


@settings(deadline=None)
@given(st.lists(moves, min_size=5, max_size=60))
def test_every_count_is_right_after_any_outcome(history: list[Move]) -> None:
    """Issue: waiters that leave free their place; counts are exact after any outcome."""
    asyncio.run(_play([*BEGIN, *history]))


async def test_shares_are_by_caller_and_the_order_is_fair(bench: Bench) -> None:
    """Issue: one caller with many requests holds another one up by a turn, not by all of them."""
    spec = ModelSpec(model=A, harness="fake", vram_bytes=10, bounds=Bounds(max_in_flight=2))
    life = await bench.supervisor.load(spec)
    await asyncio.shield(life.loaded)
    greedy = [bench.tasks.create_task(bench.ask(A, "greedy")) for _ in range(50)]
    await settle()
    modest = bench.tasks.create_task(bench.ask(A, "modest"))
    await settle()

    for _ in range(6):
        bench.harness.engines[-1].answer()
        await settle()

    assert modest.done()
    assert sum(task.done() for task in greedy) == 5


async def test_place_that_comes_free_while_the_prompt_is_read_is_taken(bench: Bench) -> None:
    """Ours: reading is for those who wait; who waits no longer is the engine's to judge."""
    bench.harness.max_in_flight = 1
    bench.harness.context = 10
    await bench.load(A)
    reading = bench.harness.engines[-1].may_read
    reading.clear()
    first = bench.tasks.create_task(bench.ask(A))
    await settle()
    second = bench.tasks.create_task(bench.ask(A, body=b"x" * 100))
    await settle()

    bench.harness.engines[-1].answer()
    await settle()
    state = bench.supervisor.state(A)
    bench.harness.engines[-1].answer()
    await settle()

    assert first.done()
    assert (state.in_flight, bench.supervisor.waiting(A)) == (1, 0)
    assert second.done()
