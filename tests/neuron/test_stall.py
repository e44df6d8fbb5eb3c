"""Engines that have work and get nowhere are given up, and no others."""

import asyncio

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import EngineError
from cortex_core.harness import EngineLoad
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.recovery import FailureKind
from neuron.lifecycle.stall import Stall
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of
from tests.neuron.conftest import Start

A = ModelId("a")
BUSY = EngineLoad(unfinished=1, steps=7)
BOUND_S = 60.0

looks = st.lists(
    st.tuples(
        st.floats(0.0, 500.0),
        st.builds(EngineLoad, unfinished=st.integers(0, 2), steps=st.none() | st.integers(0, 2)),
    ),
    min_size=1,
    max_size=80,
)


@given(looks)
def test_only_time_without_a_step_counts(history: list[tuple[float, EngineLoad]]) -> None:
    """Ours: S9; work that goes on, no work, and time in which nobody looked are no stall."""
    stall, now, interval_s = Stall(), 0.0, 1.0
    still: list[float] = []
    last: EngineLoad | None = None
    for passed_s, load in history:
        now += passed_s
        stall = stall.after(load, now, interval_s)
        is_same = last is not None and bool(last.unfinished) and last.steps == load.steps
        is_busy = bool(load.unfinished) and load.steps is not None
        still = [*still, passed_s] if is_same and is_busy else []
        last = load

        assert (stall.age_s is None) == (not is_busy)
        assert (stall.age_s or 0.0) == pytest.approx(sum(min(s, 2.0) for s in still))
        assert not stall.is_hung(0.0)


async def test_engine_that_makes_no_step_is_ended_and_comes_back(bench: Bench) -> None:
    """Ours: as if it had died, with a kind of its own."""
    await bench.load(A)
    request = bench.tasks.create_task(bench.ask(A))
    await settle()
    bench.harness.engines[0].busy = BUSY
    await bench.clock.advance(BOUND_S)
    assert bench.status(A) is ReplicaStatus.LOADED
    assert bench.supervisor.watching.last_step_age_s(A) == pytest.approx(BOUND_S, abs=1.1)

    await bench.clock.advance(1.5)

    state = bench.supervisor.state(A)
    assert (state.status, state.error_kind) == (ReplicaStatus.RECOVERING, FailureKind.HUNG)
    await bench.clock.advance(2)
    error = await request
    assert isinstance(error, EngineError)
    assert "no step for 60 s" in error.message
    assert bench.status(A) is ReplicaStatus.LOADED
    assert bench.supervisor.watching.last_step_age_s(A) is None


async def test_engine_that_compiles_is_waited_for(bench: Bench) -> None:
    """Ours: kernels may be made at the first request that needs them."""
    await bench.load(A)
    bench.harness.engines[0].busy = BUSY
    bench.harness.engines[0].compiles = True

    await bench.clock.advance(10 * BOUND_S)
    assert bench.status(A) is ReplicaStatus.LOADED
    bench.harness.engines[0].compiles = False
    await bench.clock.advance(1.2)

    assert bench.status(A) is ReplicaStatus.RECOVERING


async def test_first_answer_has_a_bound_too(bench: Bench) -> None:
    """Ours: an engine that hangs at once is a load that fails."""
    bench.harness.may_check.clear()
    load = bench.tasks.create_task(outcome_of(bench.load(A)))
    await bench.clock.advance(10 * BOUND_S - 1)
    assert not load.done()

    await bench.clock.advance(2)

    assert isinstance(await load, EngineError)
    state = bench.supervisor.state(A)
    assert (state.status, state.error_kind) == (ReplicaStatus.FAILED, FailureKind.HUNG)
    assert all(engine.is_closed for engine in bench.harness.engines)


async def test_age_of_the_last_step_is_a_series_while_there_is_work(start: Start) -> None:
    """Ours: seen before the bound ends an engine, which 0 never does."""
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}]}
    async with start(hang_timeout_s=0, simulated={"faults": {"a": {"hang": True}}}) as neuron:
        await neuron.load("a")
        idle = await (await neuron.session.get(neuron.url + "/metrics")).text()
        async with asyncio.TaskGroup() as tasks:
            ask = tasks.create_task(neuron.post("/v1/chat/completions", body))
            await neuron.until(lambda health: health["models"][0]["last_step_age_s"] is not None)
            busy = await (await neuron.session.get(neuron.url + "/metrics")).text()
            ask.cancel()

    assert "# TYPE neuron_engine_step_age_seconds gauge" in idle
    assert "neuron_engine_step_age_seconds{" not in idle
    assert 'neuron_engine_step_age_seconds{model="a"}' in busy


async def test_hung_engine_over_http(start: Start) -> None:
    """Ours: `/health` tells of it while it lasts; the request gets an error, and no sooner."""
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}]}
    async with start(hang_timeout_s=0.2, simulated={"faults": {"a": {"hang": True}}}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            ask = tasks.create_task(neuron.post("/v1/chat/completions", body))
            await neuron.until(lambda health: health["models"][0]["status"] == "recovering")
            report = await neuron.model("a")
        status, answer, _ = ask.result()
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    assert report["error_kind"] == "hung"
    assert (status, answer["error"]["code"]) == (500, "engine_error")
    assert 'neuron_engine_deaths_total{kind="hung"} 1.0' in text
