"""The simulated harness on a clock: loads, rates, queues, faults."""

import asyncio
import json
from typing import Any

import pytest

from cortex_core.errors import EngineError, ModelLoadFailedError
from cortex_core.harness import ModelSpec, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines.simulated import SimulatedHarness
from neuron.engines.simulation.engine import SimulatedEngine
from neuron.settings import Fault, SimulatedSettings
from tests.fakes.clock import FakeClock

USER = [{"role": "user", "content": "hello"}]


async def _engine(
    clock: FakeClock, tasks: asyncio.TaskGroup, settings: SimulatedSettings, **spec: Any
) -> SimulatedEngine:
    harness = SimulatedHarness(settings, clock, tasks)
    load = tasks.create_task(
        harness.load(ModelSpec(model=ModelId("m"), harness="simulated", **spec), _ignore)
    )
    await clock.advance(settings.load_s + 1)
    return load.result()


def _ignore(stage: str, done: int | None, total: int | None) -> None:
    pass


def _chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": USER, **fields}).encode()


async def _times(engine: SimulatedEngine, clock: FakeClock, body: bytes) -> list[float]:
    """Return when each token of a stream came, in seconds from now."""
    begin = clock.now()
    answer = await engine.serve(Route.CHAT_COMPLETIONS, body, RequestId("r"))
    assert not isinstance(answer.body, bytes)
    return [
        clock.now() - begin
        async for chunk in answer.body
        if b'"content":' in chunk and b'"content":""' not in chunk
    ]


async def test_tokens_come_when_the_rates_say() -> None:
    """Ours: prefill, then one token per step; to be planned with."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=1, prefill_tok_per_s=4, decode_tok_per_s=10)
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        stream = tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=3)))
        await clock.advance(60)
        await engine.close(0)

    # "user: hello\n" has 12 bytes, which are 3 tokens.
    assert stream.result() == pytest.approx([0.85, 0.95, 1.05])


async def test_requests_share_steps_up_to_the_limit_and_queue_beyond() -> None:
    """Ours: continuous batching; the third request starts when a place is free."""
    clock = FakeClock()
    settings = SimulatedSettings(
        load_s=1, prefill_tok_per_s=1e9, decode_tok_per_s=1, max_in_flight=2
    )
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        streams = [
            tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=count)))
            for count in (2, 4, 1)
        ]
        await clock.advance(0.5)
        assert (engine.load().running, engine.load().waiting) == (2, 1)
        await clock.advance(60)
        assert (engine.load().running, engine.load().waiting) == (0, 0)
        await engine.close(0)

    assert [stream.result() for stream in streams] == [
        pytest.approx([1, 2]),
        pytest.approx([1, 2, 3, 4]),
        pytest.approx([3]),
    ]


async def test_load_takes_its_time_and_the_second_one_is_warm() -> None:
    """Ours: load_s plus the reading of weights; wake_s when host memory still has them."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=2, load_mb_per_s=100, wake_s=0.5, vram_mb={"m": 1000})
    spec = ModelSpec(model=ModelId("m"), harness="simulated")
    times = []
    async with asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(settings, clock, tasks)
        for _ in range(2):
            begin = clock.now()
            load = tasks.create_task(harness.load(spec, _ignore))
            while not load.done():
                await clock.advance(0.1)
            times.append(clock.now() - begin)
            await load.result().close(0)

    assert times == [pytest.approx(12, abs=0.11), pytest.approx(0.5, abs=0.11)]


async def test_close_waits_for_running_requests_and_no_longer_than_told() -> None:
    """Ours: the bound is on the clock."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=1, decode_tok_per_s=1)
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        short = tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=2)))
        await clock.advance(0.5)
        close = tasks.create_task(engine.close(10))
        await clock.advance(3)
        assert close.done()

        assert len(short.result()) == 2
        with pytest.raises(EngineError):
            await engine.serve(Route.CHAT_COMPLETIONS, _chat(), RequestId("r"))


@pytest.mark.parametrize("failures", [True, 2])
async def test_scripted_load_failures_happen_as_often_as_said(failures: bool | int) -> None:
    """Ours: `true` for ever, a number so many times."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=0, faults={"m": Fault(fail_to_load=failures)})
    outcomes = []
    async with asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(settings, clock, tasks)
        for _ in range(3):
            try:
                engine = await harness.load(
                    ModelSpec(model=ModelId("m"), harness="simulated"), _ignore
                )
            except ModelLoadFailedError:
                outcomes.append("failed")
            else:
                outcomes.append("loaded")
                await engine.close(0)

    assert outcomes == ["failed", "failed", "failed" if failures is True else "loaded"]


async def test_slow_model_takes_its_factor_of_everything() -> None:
    """Ours: `slow` stretches tokens too."""
    clock = FakeClock()
    settings = SimulatedSettings(
        load_s=1, prefill_tok_per_s=1e9, decode_tok_per_s=10, faults={"m": Fault(slow=5)}
    )
    async with asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(settings, clock, tasks)
        load = tasks.create_task(
            harness.load(ModelSpec(model=ModelId("m"), harness="simulated"), _ignore)
        )
        await clock.advance(4.9)
        assert not load.done()
        await clock.advance(0.2)
        engine = load.result()
        stream = tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=2)))
        await clock.advance(9)
        await engine.close(0)

    assert stream.result() == pytest.approx([0.5, 1.0])


async def test_dead_engine_says_why_and_is_dead_for_good() -> None:
    """Ours: `failed()` wakes, later requests are refused."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=1, faults={"m": Fault(die_after_tokens=2)})
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        failed = tasks.create_task(engine.failed())
        moving = tasks.create_task(clock.advance(60))
        with pytest.raises(EngineError):
            await engine.serve(Route.CHAT_COMPLETIONS, _chat(), RequestId("r"))
        await moving

        assert failed.done()
        assert engine.failure is not None
        assert "after 2 tokens" in engine.failure
