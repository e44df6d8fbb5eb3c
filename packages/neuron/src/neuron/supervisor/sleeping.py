"""Putting engines to sleep and waking them, as procedures that come back with an event."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cortex_core.errors import (
    EngineError,
    InsufficientVramError,
    InternalError,
    NoReplicaError,
    RequestError,
)
from cortex_core.harness import Engine
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.events import (
    Event,
    LoadPlaced,
    LoadProgressed,
    SleepEnded,
    WakeEnded,
    WakeRefused,
)
from neuron.lifecycle.recovery import FailureKind, kind_of_text
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts
from neuron.supervisor.procedures import CUT_NOTICE_S, interrupted_error
from neuron.supervisor.waiting import within
from neuron.supervisor.watching import OnDeath

logger = logging.getLogger(__name__)


class Sleeping:
    """Starts sleeps and wakes.

    Both are tasks of their life: an unload, and the death of the engine, cancel them and then
    do what is left to do.

    Args:
        parts: what they need.
        apply: takes the events with which they come back.
        check: has an engine answer the neuron's own question.
        on_death: called for an engine that neither sleeps nor works.
    """

    def __init__(
        self,
        parts: Parts,
        apply: Callable[[Life, Event], None],
        check: Callable[[Life, Engine], Awaitable[None]],
        on_death: OnDeath,
    ) -> None:
        self._on_death = on_death
        self._check = check
        self._parts = parts
        self._clock = parts.clock
        self._memory = parts.memory
        self._apply = apply

    def fall_asleep(self, life: Life, level: int, drain_timeout_s: float) -> None:
        """Drain an engine and put it to sleep."""
        life.begin_sleep()
        self._memory.will_free(life.model)
        work = self._fall_asleep(life, level, drain_timeout_s)
        self._start(life, self._parts.spawn(work, f"sleep {life.model}"))

    def wake(self, life: Life) -> None:
        """Wake an engine."""
        life.begin_wake()
        self._start(life, self._parts.spawn(self._wake(life), f"wake {life.model}"))

    def _start(self, life: Life, task: asyncio.Task[None]) -> None:
        life.tasks = [*(old for old in life.tasks if not old.done()), task]

    async def _fall_asleep(self, life: Life, level: int, drain_timeout_s: float) -> None:
        try:
            if drain_timeout_s > 0:
                await within(self._clock, drain_timeout_s, life.drained())
            life.cut(NoReplicaError(f"{life.model!r} was put to sleep while it answered"))
            await within(self._clock, CUT_NOTICE_S, life.idle())
            await self._suspend(life, level)
        except asyncio.CancelledError:
            self._parts.metrics.sleeps.labels("cancelled").inc()
            life.fail_asleep(interrupted_error(life, "falling asleep"))
            raise
        except (RequestError, TimeoutError) as error:
            self._fail_sleep(life, _told(life, error))
            return
        except Exception:
            logger.exception("sleep failed", extra={"model": life.model})
            self._fail_sleep(life, InternalError())
            return
        self._parts.metrics.sleeps.labels("ok").inc()
        if not life.asleep.done():
            life.asleep.set_result(None)
        logger.info("model sleeps", extra={"model": life.model, "level": level})

    def _fail_sleep(self, life: Life, error: RequestError) -> None:
        self._parts.metrics.sleeps.labels("failed").inc()
        life.fail_asleep(error)
        self._on_death(life, error.message, kind_of_text(error.message))

    async def _suspend(self, life: Life, level: int) -> None:
        engine, memory = _engine_of(life), self._memory
        async with self._parts.lanes.hold(life.state.devices):
            before = await memory.used(life.model)
            async with asyncio.timeout(self._parts.settings.sleep_timeout_s):
                await engine.sleep(level)
            left_bytes = await memory.left_asleep(life.model, before)
        memory.fell_asleep(life.model, left_bytes)
        ended = SleepEnded(
            host_used_bytes=memory.sleep_budget.holdings.get(life.model, 0), now=self._clock.now()
        )
        self._apply(life, ended)

    async def _wake(self, life: Life) -> None:
        try:
            await self._memory.reserve_again(life.state.asked, lambda: self._wait_for_memory(life))
            life.accepted.set()
            placed = LoadPlaced(devices=life.state.devices, now=self._clock.now())
            self._apply(life, placed)
            try:
                await self._resume(life)
            except InsufficientVramError as error:
                # The engine's own word for what `reserve_again` says; it is half awake.
                raise EngineError(error.message) from None
        except InsufficientVramError as error:
            self._apply(life, WakeRefused(now=self._clock.now()))
            self._end_badly(life, error, "refused")
        except asyncio.CancelledError:
            life.fail_loaded(interrupted_error(life, "waking"))
            self._parts.metrics.wakes.labels("cancelled").inc()
            raise
        except RequestError as error:
            self._end_badly(life, error, "failed")
            self._on_death(life, error.message, kind_of_text(error.message))
        except Exception:
            logger.exception("wake failed", extra={"model": life.model})
            bug = InternalError()
            self._end_badly(life, bug, "failed")
            self._on_death(life, bug.message, FailureKind.UNKNOWN)
        else:
            self._end_well(life)

    async def _resume(self, life: Life) -> None:
        engine = _engine_of(life)
        async with self._parts.lanes.hold(life.state.devices):
            self._progress(life, "waking")
            await engine.wake()
            self._progress(life, "checking")
            await self._check(life, engine)

    def _end_well(self, life: Life) -> None:
        self._memory.woke(life.model)
        self._apply(life, WakeEnded(now=self._clock.now()))
        if life.state.status is not ReplicaStatus.LOADED:
            # An unload came in the same moment; it closes the engine.
            life.fail_loaded(interrupted_error(life, "waking"))
            return
        self._parts.metrics.wakes.labels("ok").inc()
        self._parts.notebook.learn(life.state.asked, wake_s=life.state.wake_s)
        self._parts.metrics.wake_seconds.observe(life.state.wake_s or 0)
        life.loaded.set_result(None)
        logger.info("model awake", extra={"model": life.model, "wake_s": life.state.wake_s})

    def _end_badly(self, life: Life, error: RequestError, outcome: str) -> None:
        self._parts.metrics.wakes.labels(outcome).inc()
        life.fail_loaded(error)
        logger.warning(
            "model not awake",
            extra={"model": life.model, "outcome": outcome, "reason": error.message},
        )

    def _wait_for_memory(self, life: Life) -> None:
        life.accepted.set()
        self._progress(life, "memory")

    def _progress(self, life: Life, stage: str) -> None:
        now = self._clock.now()
        self._apply(life, LoadProgressed(stage=stage, done_bytes=None, total_bytes=None, now=now))


def _told(life: Life, error: RequestError | TimeoutError) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return EngineError(f"{life.model!r} did not fall asleep in time")


def _engine_of(life: Life) -> Engine:
    if life.engine is None:
        raise EngineError(f"{life.model!r} has no engine")
    return life.engine
