"""Requests before an engine: in line, let in, sent away; whatever happens, every count is right."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Literal, get_args

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from cortex_core.errors import RequestError
from cortex_core.harness import Bounds, EngineLoad, ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.settings import AdmissionSettings
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of
from tests.neuron.conftest import Json, RunningNeuron, Start

CHAT = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"
A = ModelId("a")

PLACES = 3
QUEUE = 4
WAIT_S = 20.0

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
            await bench.clock.advance(move.then_s)
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
        # What a gateway may send elsewhere, what was cut under way, and nothing else.
        assert codes <= {
            "server_is_overloaded",
            "draining",
            "no_replica",
            "recovering",
            "model_loading",
            "model_load_failed",
            "model_not_found",
            "engine_error",
        }


@settings(deadline=None)
@given(st.lists(moves, min_size=5, max_size=60))
def test_every_count_is_right_after_any_outcome(history: list[Move]) -> None:
    """Issue: waiters that leave free their place; counts are exact after any outcome."""
    asyncio.run(_play(history))


@pytest.fixture
def one() -> dict[str, object]:
    """Settings of a model that takes one request and lets two wait."""
    return {
        "admission": {"max_in_flight": 1, "max_queue": 2, "max_share": 1.0},
        "simulated": {"faults": {"a": {"hang": True}}},
    }


def _queued(count: int) -> Callable[[Json], bool]:
    def holds(health: Json) -> bool:
        return [entry["queued"] for entry in health["models"]] == [count]

    return holds


async def _code(neuron: RunningNeuron) -> tuple[int, str, str | None]:
    status, body, headers = await neuron.post(PATH, CHAT)
    return status, body["error"]["code"], headers.get("x-cortex-not-admitted")


async def test_request_that_finds_the_queue_full_is_refused_at_once(
    start: Start, one: dict[str, object]
) -> None:
    """Issue: 503 `server_is_overloaded` with the time after which to come back."""
    async with start(**one) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_code(neuron)) for _ in range(3)]
            health = await neuron.until(_queued(2))
            status, body, headers = await neuron.post(PATH, CHAT)
            text = await (await neuron.session.get(neuron.url + "/metrics")).text()
            await neuron.post("/models/unload", {"model_id": "a", "force": True})

    assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
    assert headers["x-cortex-not-admitted"] == "1"
    assert int(headers["retry-after"]) >= 1
    assert health["models"][0]["in_flight"] == 3
    assert 'neuron_queued{model="a"} 2.0' in text
    assert 'neuron_refusals_total{reason="server_is_overloaded"} 1.0' in text
    # The one that ran was cut; those that waited may be sent elsewhere.
    assert Counter(task.result() for task in asked) == {
        (503, "no_replica", None): 1,
        (503, "no_replica", "1"): 2,
    }


async def test_waiter_that_leaves_frees_its_place(start: Start, one: dict[str, object]) -> None:
    async with start(**one) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(neuron.post(PATH, CHAT))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            waiters = [tasks.create_task(neuron.post(PATH, CHAT)) for _ in range(2)]
            await neuron.until(_queued(2))
            waiters[0].cancel()
            await neuron.until(_queued(1))
            running.cancel()
            await neuron.until(_queued(0))
            health = await neuron.get("/health")
            waiters[1].cancel()
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 0)

    assert health["models"][0]["in_flight"] == 1


async def test_request_that_waits_for_too_long_is_refused(start: Start) -> None:
    async with start(
        admission={"max_in_flight": 1, "max_wait_s": 0.05},
        simulated={"faults": {"a": {"hang": True}}},
    ) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(neuron.post(PATH, CHAT))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            refused = await _code(neuron)
            health = await neuron.get("/health")
            running.cancel()

    assert refused == (503, "server_is_overloaded", "1")
    assert (health["models"][0]["in_flight"], health["models"][0]["queued"]) == (1, 0)


async def test_drain_sends_waiters_elsewhere_and_lets_the_running_one_finish(
    start: Start,
) -> None:
    """Ours: reliability S13; who waits here would only hold the drain up."""
    async with start(admission={"max_in_flight": 1}, simulated={"decode_tok_per_s": 40}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(neuron.post(PATH, {**CHAT, "max_tokens": 30}))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            waiter = tasks.create_task(_code(neuron))
            await neuron.until(_queued(1))
            neuron.shutdown.ask()

    assert waiter.result() == (503, "draining", "1")
    assert first.result()[0] == 200


async def test_death_of_the_engine_sends_waiters_elsewhere(start: Start) -> None:
    async with start(
        admission={"max_in_flight": 1},
        simulated={"decode_tok_per_s": 40, "faults": {"a": {"die_after_tokens": 20}}},
    ) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(
                neuron.post(PATH, {**CHAT, "max_tokens": 300, "ignore_eos": True})
            )
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            waiter = tasks.create_task(_code(neuron))
            await neuron.until(_queued(1))

    assert first.result()[1]["error"]["code"] == "engine_error"
    status, _, marked = waiter.result()
    assert (status, marked) == (503, "1")


async def test_bounds_of_the_load_go_before_those_of_the_settings(start: Start) -> None:
    async with start(
        admission={"max_in_flight": 9}, simulated={"faults": {"a": {"hang": True}}}
    ) as neuron:
        await neuron.load("a", max_in_flight=1, max_queue=0)
        report = await neuron.model("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(neuron.post(PATH, CHAT))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            refused = await _code(neuron)
            running.cancel()

    assert report["max_in_flight"] == 1
    assert refused == (503, "server_is_overloaded", "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_in_flight", 0),
        ("max_queue", -1),
        ("max_wait_s", 0),
        ("max_share", 0),
        ("max_share", 2),
    ],
)
async def test_bound_that_cannot_be_is_a_400_that_names_it(
    start: Start, name: str, value: float
) -> None:
    async with start() as neuron:
        status, body, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated", name: value}
        )

    assert (status, body["error"]["param"]) == (400, name)


async def test_counting_needs_no_place(start: Start, one: dict[str, object]) -> None:
    """Ours: a tokenizer answers, and nobody is to wait behind answers for it."""
    async with start(**one) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(neuron.post(PATH, CHAT)) for _ in range(3)]
            await neuron.until(_queued(2))
            status, body, _ = await neuron.post(f"{PATH}/count_tokens", CHAT)
            for task in asked:
                task.cancel()

    assert status == 200
    assert body["prompt_tokens"] > 0


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
