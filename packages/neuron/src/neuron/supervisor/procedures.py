"""What takes time: bringing engines up, taking them down, and watching them.

Every procedure is a task that ends by itself and comes back with an event; none of them decides
what becomes of a replica.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

import msgspec

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    EngineError,
    InsufficientDiskError,
    InsufficientVramError,
    InternalError,
    InvalidRequestError,
    NoReplicaError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import Engine, ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.events import (
    Event,
    LoadEnded,
    LoadFailed,
    LoadPlaced,
    LoadProgressed,
    UnloadEnded,
)
from neuron.lifecycle.recovery import kind_of_error
from neuron.supervisor.adapting import Adapting
from neuron.supervisor.fitting import Fitting
from neuron.supervisor.life import Life, Refusal
from neuron.supervisor.parts import Parts
from neuron.supervisor.waiting import within
from neuron.supervisor.watching import Watching

logger = logging.getLogger(__name__)

# A dead engine tells its requests so itself; this is for those that it forgets.
_DEATH_NOTICE_S = 1.0

CUT_NOTICE_S = 5.0
"""How long cut requests get to send their error and leave."""

# These say that the load cannot be done here and now, and nothing of the model itself.
_REFUSALS = (
    InvalidRequestError,
    NotFoundError,
    InsufficientDiskError,
    InsufficientVramError,
    ConflictError,
)


class Procedures:
    """Starts procedures.

    Args:
        parts: what they need.
        apply: takes the events with which they come back.
        on_closed: called when an engine that had served is gone and its memory free.
        watching: looks after engines.
        adapting: brings up what lives on the engine of another model.
    """

    def __init__(
        self,
        parts: Parts,
        apply: Callable[[Life, Event], None],
        on_closed: Callable[[], None],
        watching: Watching,
        adapting: Adapting,
    ) -> None:
        self._parts = parts
        self._adapting = adapting
        self._on_closed = on_closed
        self._watching = watching
        self._clock = parts.clock
        self._memory = parts.memory
        self._apply = apply
        self._fitting = Fitting(parts)

    def bring_up(self, life: Life, predecessor: Life | None) -> None:
        """Load a model, once what is left of its `predecessor` is gone."""
        work = self._bring_up(life, predecessor)
        life.tasks.append(self._parts.spawn(work, f"load {life.model}"))

    def cancel(self, life: Life) -> None:
        """Undo a load under way."""
        if life.has_reserved:
            self._memory.will_free(life.model)
        life.cancel_tasks()

    def take_down(self, life: Life, drain_timeout_s: float, adapters: Collection[Life]) -> None:
        """Give up what else is done with an engine, drain it and close it.

        Args:
            life: of the engine.
            drain_timeout_s: how long requests may go on.
            adapters: what lives on the engine, and is being taken down too; it goes first.
        """
        self._memory.will_free(life.model)
        life.cancel_tasks()
        work = self._take_down(life, drain_timeout_s, adapters)
        life.ending = self._parts.spawn(work, f"unload {life.model}")

    def hasten(self, life: Life, drain_timeout_s: float) -> None:
        """End the drain of an unload or sleep under way after `drain_timeout_s` at the latest."""
        work = self._hasten(life, life.hastened, drain_timeout_s)
        life.hasting = [task for task in life.hasting if not task.done()]
        life.hasting.append(self._parts.spawn(work, "hasten"))

    def dispose(self, life: Life, error: str) -> None:
        """Free what an engine that is of no use any more left."""
        self._memory.will_free(life.model)
        work = self._dispose(life, error)
        life.ending = self._parts.spawn(work, f"dispose {life.model}")

    async def _bring_up(self, life: Life, predecessor: Life | None) -> None:
        try:
            if predecessor is not None:
                await predecessor.gone.wait()
            life.engine = await self.load_engine(life)
        except RequestError as error:
            self.end_load(life, error, "refused" if isinstance(error, _REFUSALS) else "failed")
        except asyncio.CancelledError:
            self.end_load(life, interrupted_error(life, "loading"), "cancelled")
            raise
        except Exception:
            logger.exception("load failed", extra={"model": life.model})
            self.end_load(life, InternalError(), "failed")
        else:
            await self.keep(life, life.engine)

    async def load_engine(self, life: Life) -> Engine:
        """Return a new engine for a life, that answers as it should, with its memory reserved.

        Raises:
            RequestError: why there is none; memory may be reserved all the same.
        """
        if life.state.asked.base is not None:
            return await self._adapting.load(
                life,
                lambda *news: self._fetching(life, *news),
                lambda devices: self._place(life, devices),
            )
        harness = self._parts.harnesses[life.state.asked.harness]
        await harness.fetch(life.state.asked, lambda *news: self._fetching(life, *news))
        spec = await harness.check(life.state.asked)
        weak = await self._fitting.refuse(life.state.asked, spec)
        # What such a load held before is worth more than anybody's estimate.
        measured = self._parts.notebook.notes.vram_bytes(life.state.asked)
        needed = spec.vram_bytes if measured is None else measured
        devices = await self._memory.reserve(
            msgspec.structs.replace(spec, vram_bytes=needed),
            lambda: self._wait_for_memory(life),
            weak,
        )
        if measured is not None:
            # The engine is not told less than at first: it takes what it is told, and would be
            # given less from load to load.
            spec = msgspec.structs.replace(spec, vram_bytes=max(measured, spec.vram_bytes or 0))
        life.has_reserved = True
        self._place(life, devices)
        async with self._parts.lanes.hold(devices):
            before = await self._memory.used(life.model)
            engine = await self._parts.groups.load(
                harness, _placed(spec, devices), lambda *news: self._progress(life, *news)
            )
            try:
                self._progress(life, "checking")
                await self._watching.check(life, engine)
                await self._memory.measure(life.model, engine.info.vram_bytes, before)
            except BaseException:
                await engine.close(0)
                raise
            return engine

    async def keep(self, life: Life, engine: Engine) -> None:
        """Have an engine that has just come up serve, unless it is not wanted any more."""
        self._apply(life, LoadEnded(info=engine.info, now=self._clock.now()))
        if life.state.status is not ReplicaStatus.LOADED:
            # The harness finished although it was told to stop.
            await self._close_engine(life)
            self.end_load(life, interrupted_error(life, "loading"), "cancelled")
            return
        self._parts.metrics.loads.labels("ok").inc()
        self._parts.trusting.came_up(life.state.devices)
        self._parts.notebook.learn(
            life.state.asked,
            vram_bytes=self._memory.measured_bytes(life.model),
            load_s=life.state.load_s,
        )
        self._parts.metrics.load_seconds.observe(life.state.load_s or 0)
        life.tasks = []
        self._watching.begin(life, engine)
        life.loaded.set_result(None)
        logger.info("model loaded", extra={"model": life.model, "load_s": life.state.load_s})

    def end_load(self, life: Life, error: RequestError, outcome: str) -> None:
        """End a life that has no engine, and tell everybody who waits for one."""
        self.let_go(life, outcome)
        is_refused = outcome == "refused"
        kind = kind_of_error(error)
        self._parts.trusting.failed(life.state.devices, life.model, kind)
        life.refusal = Refusal(reason=error.message, kind=kind) if is_refused else None
        failed = LoadFailed(
            error=error.message, kind=kind, now=self._clock.now(), is_refused=is_refused
        )
        self._apply(life, failed)
        self._apply(life, UnloadEnded())
        life.gone.set()
        life.fail_loaded(error)
        logger.warning(
            "model not loaded",
            extra={"model": life.model, "outcome": outcome, "reason": error.message},
        )

    def _place(self, life: Life, devices: tuple[DeviceIndex, ...]) -> None:
        life.accepted.set()
        self._apply(life, LoadPlaced(devices=devices, now=self._clock.now()))

    def _fetching(self, life: Life, stage: str, done: int | None, total: int | None) -> None:
        # It is known where the weights are; who does not wait for the load need not wait for them.
        life.accepted.set()
        self._progress(life, stage, done, total)

    def let_go(self, life: Life, outcome: str) -> None:
        """Count a load that ended without an engine, and free what was reserved for it."""
        self._parts.metrics.loads.labels(outcome).inc()
        if life.has_reserved:
            self._memory.release(life.model)
            life.has_reserved = False

    def _wait_for_memory(self, life: Life) -> None:
        life.accepted.set()
        self._progress(life, "memory")

    def _progress(
        self, life: Life, stage: str, done: int | None = None, total: int | None = None
    ) -> None:
        now = self._clock.now()
        self._apply(life, LoadProgressed(stage=stage, done_bytes=done, total_bytes=total, now=now))

    async def _take_down(
        self, life: Life, drain_timeout_s: float, adapters: Collection[Life]
    ) -> None:
        try:
            if drain_timeout_s > 0:
                await within(self._clock, drain_timeout_s, life.drained())
            life.cut(NoReplicaError(f"{life.model!r} was unloaded while it answered"))
            await within(self._clock, CUT_NOTICE_S, life.idle())
            for adapter in adapters:
                await adapter.gone.wait()
            await self._close_engine(life)
        finally:
            self._memory.release(life.model)
            self._apply(life, UnloadEnded())
            life.gone.set()
            self._on_closed()
        logger.info("model unloaded", extra={"model": life.model})

    async def _hasten(self, life: Life, hastened: asyncio.Event, drain_timeout_s: float) -> None:
        await within(self._clock, drain_timeout_s, life.gone.wait())
        hastened.set()

    async def _dispose(self, life: Life, error: str) -> None:
        try:
            await within(self._clock, _DEATH_NOTICE_S, life.idle())
            life.die(EngineError(error))
            await self._close_engine(life)
        finally:
            self._memory.release(life.model)
            life.gone.set()
            self._on_closed()

    async def _close_engine(self, life: Life) -> None:
        """Close the engine, bounded, and wait for its memory."""
        engine, life.engine = life.engine, None
        life.cancel_tasks()
        if engine is None:
            return
        async with self._parts.lanes.hold(life.state.devices), self._memory.settled(life.model):
            try:
                async with asyncio.timeout(self._parts.settings.close_timeout_s):
                    await engine.close(0)
            except TimeoutError:
                logger.error("engine does not close", extra={"model": life.model})
            except Exception:
                # An engine that cannot even be closed must not take the daemon with it.
                logger.exception("engine failed to close", extra={"model": life.model})


def interrupted_error(life: Life, doing: str) -> RequestError:
    """Return why a life was ended while it was `doing` something, for those who wait for that."""
    if life.is_shutting_down:
        return DrainingError("this neuron is shutting down; load it on another one")
    if life.state.status is ReplicaStatus.FAILED:
        return EngineError(life.state.error or "the engine stopped working")
    return ConflictError(f"{life.model!r} was unloaded while it was {doing}")


def _placed(spec: ModelSpec, devices: tuple[DeviceIndex, ...]) -> ModelSpec:
    return msgspec.structs.replace(
        spec, devices=devices, tensor_parallel=spec.tensor_parallel_on(len(devices))
    )
