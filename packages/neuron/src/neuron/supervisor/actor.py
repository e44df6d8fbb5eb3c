"""The supervisor: the one owner of every replica on this node.

Its mailbox is the event loop: every command and every event is applied whole, without waiting,
by `lifecycle.replica.step`; what takes time runs in a task that comes back with an event.
Therefore nothing is ever checked first and acted upon later.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from cortex_core.errors import (
    CordonedError,
    DrainingError,
    ModelNotFoundError,
    RequestError,
)
from cortex_core.harness import Engine, ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from cortex_core.units import bytes_from_mib
from neuron.lifecycle.admission import refusal
from neuron.lifecycle.budget import host_bytes
from neuron.lifecycle.events import (
    CancelLoad,
    DisposeEngine,
    Effect,
    Event,
    HastenDrain,
    LoadAsked,
    Refuse,
    RequestBegan,
    RequestEnded,
    SleepAsked,
    StartLoad,
    StartRecovery,
    StartSleep,
    StartUnload,
    StartWake,
    UnloadAsked,
    WakeAsked,
)
from neuron.lifecycle.recovery import Attempt, FailureKind
from neuron.lifecycle.replica import ReplicaState, obeyed, step
from neuron.lifecycle.selection import check_devices
from neuron.supervisor.adapting import Adapting
from neuron.supervisor.admission import Admission
from neuron.supervisor.lease import Lease, NotAdmittedError, Wish
from neuron.supervisor.life import Life, Refusal
from neuron.supervisor.parts import Parts
from neuron.supervisor.procedures import Procedures
from neuron.supervisor.recovering import Recovering
from neuron.supervisor.recycling import Recycling
from neuron.supervisor.sleeping import Sleeping
from neuron.supervisor.waiting import within
from neuron.supervisor.watching import Watching

logger = logging.getLogger(__name__)

OnChange = Callable[[ModelId, ReplicaState | None, Refusal | None], None]
"""Takes a model, its state (`None` when it is gone) and why its load was refused, if it was."""


class Supervisor:
    """Loads, unloads, admits.

    Args:
        parts: what loads and unloads need.
        on_change: called after every change of a model.
    """

    def __init__(self, parts: Parts, on_change: OnChange) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._on_change = on_change
        self._lives: dict[ModelId, Life] = {}
        self._leaving: dict[ModelId, Life] = {}
        self.watching = Watching(parts, self._died)
        self._adapting = Adapting(parts, self._lives, self._apply, self.watching)
        self._procedures = Procedures(
            parts, self._apply, self._closed, self.watching, self._adapting
        )
        self._recovering = Recovering(parts, self._procedures, self._apply)
        self.recycling = Recycling(parts, self._all_lives, self.unload, self._load_again)
        self._sleeping = Sleeping(parts, self._apply, self.watching.check, self._died)
        self._admission = Admission(parts, self._refusal, self._tell)
        self.is_draining = False
        self._mending: asyncio.Task[None] | None = None

    def states(self) -> tuple[ReplicaState, ...]:
        """Return all models in the order in which they came."""
        return tuple(life.state for life in self._lives.values())

    def has(self, model: ModelId) -> bool:
        """Return whether this node has the model, in whatever state."""
        return model in self._lives

    def state(self, model: ModelId) -> ReplicaState:
        """Return one model.

        Raises:
            ModelNotFoundError: this node does not have it.
        """
        return self._life(model).state

    def engine(self, model: ModelId) -> Engine | None:
        """Return the engine of a model, or `None` when it has none."""
        life = self._lives.get(model)
        return None if life is None else life.engine

    async def load(
        self, spec: ModelSpec, *, is_automatic: bool = False, was_here: bool = False
    ) -> Life:
        """Start to load a model, or join; wait for `loaded` of what is returned.

        A model that is being unloaded or put to sleep is waited for first; one that sleeps is
        woken. One that was given up after too many failures starts afresh, unless nobody in
        person asks for it.

        Args:
            spec: what to load.
            is_automatic: whether a program decided it.
            was_here: it comes back after a restart, which a cordon does not forbid.

        Raises:
            RequestError: the load is refused.
        """
        self._parts.harness_for(spec)
        check_devices(spec, self._parts.facts.devices)
        await self._wait_for_unload(spec.model)
        self._check_draining()
        is_taken = was_here or not self._parts.notebook.notes.is_cordoned
        life = self._start_load(spec, is_new_taken=is_taken, is_automatic=is_automatic)
        if not is_automatic and life.state.status is ReplicaStatus.LOADING:
            self._recovering.forget(spec)
        return life

    def _load_again(self, spec: ModelSpec) -> Life:
        """Start to load a model that was here until a moment ago, cordoned or not."""
        self._check_draining()
        return self._start_load(spec)

    def _start_load(
        self, spec: ModelSpec, *, is_new_taken: bool = True, is_automatic: bool = False
    ) -> Life:
        known = self._lives.get(spec.model)
        asked = LoadAsked(spec=spec, now=self._clock.now())
        after = obeyed(step(known.state if known is not None else None, asked))
        is_new = any(isinstance(effect, StartLoad) for effect in after.effects)
        if after.state is not None and is_new:
            if not is_new_taken:
                raise CordonedError(
                    f"this neuron is cordoned and takes no new models; load {spec.model!r} "
                    "elsewhere"
                )
            if is_automatic:
                self._recovering.check(spec, known.state if known is not None else None)
            return self._begin(after.state)
        life = self._life(spec.model)
        self._apply(life, asked)
        return life

    async def sleep(self, model: ModelId, level: int, drain_timeout_s: float) -> None:
        """Put a model to sleep, or join, and return when its device memory is free.

        Raises:
            ModelNotFoundError: this node does not have it.
            ConflictError: it cannot sleep, or not now.
            InsufficientSleepMemoryError: the others that sleep hold too much.
            RequestError: it does not fall asleep, and is of no use any more.
        """
        await self.recycling.wait(self._parts.settings.memory_wait_s)
        life = self._life(model)
        self._check_draining()
        self._adapting.check_none(model)
        asked = SleepAsked(level=level, now=self._clock.now(), drain_timeout_s=drain_timeout_s)
        after = obeyed(step(life.state, asked))
        if life.state.info is not None and any(isinstance(e, StartSleep) for e in after.effects):
            self._parts.memory.hold_host(model, host_bytes(life.state.info, level))
        self._apply(life, asked)
        # Shielded: a caller that leaves must not take the sleep with it.
        await asyncio.shield(life.asleep)

    async def wake(self, model: ModelId) -> Life:
        """Start to wake a model, or join; wait for `loaded` of what is returned.

        A model that is falling asleep is waited for first.

        Raises:
            ModelNotFoundError: this node does not have it.
            ConflictError: it does not sleep.
        """
        await self._wait_for_unload(model)
        life = self._life(model)
        self._check_draining()
        asked = WakeAsked(now=self._clock.now())
        obeyed(step(life.state, asked))
        self._apply(life, asked)
        return life

    async def unload(self, model: ModelId, drain_timeout_s: float) -> None:
        """Unload a model and return when its memory is free.

        Raises:
            ModelNotFoundError: this node does not have it.
        """
        life = self._life(model)
        now = self._clock.now()
        self._apply(life, UnloadAsked(now=now, drain_timeout_s=drain_timeout_s))
        await life.gone.wait()
        dead = self._leaving.get(model)
        if dead is not None:
            await dead.gone.wait()

    @contextlib.asynccontextmanager
    async def lease(self, model: ModelId, wish: Wish) -> AsyncIterator[Lease]:
        """Admit one request, and count it for as long as the context is open.

        Args:
            model: as the caller named it.
            wish: what is known of the request.

        Raises:
            NotAdmittedError: it is refused; see its cause.
            RequestError: the request was cut.
        """
        life = self._lives.get(model)
        refused = self._refusal(model, life)
        if refused is not None:
            raise NotAdmittedError(refused)
        life = self._life(model)
        async with self._admission.place(life, wish):
            if life.engine is None:
                raise NotAdmittedError(ModelNotFoundError(model))
            lease = Lease(life.engine)
            life.add(lease)
            self._apply(life, RequestBegan())
            try:
                async with lease:
                    yield lease
            finally:
                life.remove(lease)
                self._apply(life, RequestEnded(now_epoch=self._clock.wall()))

    def waiting(self, model: ModelId) -> int:
        """Return how many requests wait for a place with the engine of `model`."""
        life = self._lives.get(model)
        return 0 if life is None else life.door.line.waiting

    def start_draining(self) -> None:
        """Take no new work; what waits for a place is to go elsewhere, what has one goes on."""
        self.is_draining = True
        for life in self._lives.values():
            self._admission.review(life)

    async def close(self) -> None:
        """Cut what still runs, close all engines, and return when they are gone."""
        self.start_draining()
        lives = self._all_lives()
        for life in lives:
            life.is_shutting_down = True
            life.cut(DrainingError("this neuron is shutting down"))
            self._apply(life, UnloadAsked(now=self._clock.now(), drain_timeout_s=0))
        for life in lives:
            await life.gone.wait()

    async def recycle(self) -> None:
        """Replace all engines; see `Recycling.recycle`."""
        self._check_draining()
        await self.recycling.recycle()

    def _closed(self) -> None:
        """Count an engine that is gone, and have engines replaced where too much is missing."""
        self.recycling.cycles += 1
        bound_mb = self._parts.settings.leak_recycle_mb
        if not bound_mb or self.is_draining or self.recycling.is_running:
            return
        leaky = self._parts.memory.leaky(bytes_from_mib(bound_mb))
        if leaky:
            self._mending = self._parts.spawn(self._recycle(leaky), "recycle for a leak")

    async def _recycle(self, devices: frozenset[DeviceIndex]) -> None:
        try:
            await self.recycling.recycle(devices)
        except RequestError as error:
            logger.warning("engines not replaced", extra={"reason": error.message})

    def _all_lives(self) -> tuple[Life, ...]:
        return (*self._lives.values(), *self._leaving.values())

    def _life(self, model: ModelId) -> Life:
        life = self._lives.get(model)
        if life is None:
            raise ModelNotFoundError(model)
        return life

    async def _wait_for_unload(self, model: ModelId) -> None:
        await self.recycling.wait(self._parts.settings.memory_wait_s)
        life = self._lives.get(model)
        if life is not None and life.state.status is ReplicaStatus.UNLOADING:
            await within(self._clock, self._parts.settings.memory_wait_s, life.until_settled())

    def _check_draining(self) -> None:
        if self.is_draining:
            raise DrainingError("this neuron is shutting down; load it on another one")

    def _begin(self, state: ReplicaState) -> Life:
        life = Life(state)
        self._lives[life.model] = life
        self._changed(life)
        self._procedures.bring_up(life, self._leaving.get(life.model))
        return life

    def _apply(self, life: Life, event: Event) -> None:
        """Take one event; those of a life that is over are too late."""
        if self._lives.get(life.model) is not life:
            return
        after = step(life.state, event)
        if after.state is None:
            del self._lives[life.model]
        elif after.state is life.state and not after.effects:
            return
        else:
            life.state = after.state
        for effect in after.effects:
            self._perform(life, effect)
        self._changed(life)

    def _perform(self, life: Life, effect: Effect) -> None:
        match effect:
            case CancelLoad():
                self._adapting.unload_all(life, 0.0)
                self._procedures.cancel(life)
            case StartSleep():
                self._sleeping.fall_asleep(life, effect.level, effect.drain_timeout_s)
            case StartWake():
                self._sleeping.wake(life)
            case StartUnload():
                adapters = self._adapting.unload_all(life, effect.drain_timeout_s)
                self._procedures.take_down(life, effect.drain_timeout_s, adapters)
            case HastenDrain():
                self._adapting.unload_all(life, effect.drain_timeout_s)
                self._procedures.hasten(life, effect.drain_timeout_s)
            case DisposeEngine():
                self._leaving[life.model] = life
                if life.model not in self._lives:
                    life.end_as_failed(effect.error)
                self._procedures.dispose(life, effect.error)
            case StartRecovery():
                self._recover(life, effect.attempt)
            case StartLoad() | Refuse():
                raise AssertionError("commands are answered where they are given")

    def _died(self, life: Life, error: str, kind: FailureKind) -> None:
        if self._lives.get(life.model) is not life:
            return
        # The head of an engine over several nodes brings back all its parts.
        is_part = life.state.asked.seat is not None
        self._recovering.died(life, error, kind, is_wanted=not (self.is_draining or is_part))

    def give_up(self, model: ModelId, reason: str) -> None:
        """Try no more to bring back a model that is `recovering`."""
        self._recovering.give_up(self._life(model), reason)

    def _recover(self, dead: Life, attempt: Attempt) -> None:
        """Begin the life of an engine in place of that of the dead one."""
        life = Life(dead.state)
        dead.end_as_failed(dead.state.error)
        self._lives[life.model] = life
        self._recovering.begin(life, dead, attempt)

    def _changed(self, life: Life) -> None:
        life.changed.set()
        life.changed = asyncio.Event()
        self._admission.review(life)
        self._tell(life)

    def _tell(self, life: Life) -> None:
        self._on_change(life.model, self._state_of(life.model), life.refusal)

    def _refusal(self, model: ModelId, life: Life | None) -> RequestError | None:
        """Return why requests for a model do not get to `life`; `None` when they do."""
        now = self._lives.get(model)
        is_replaced = life is not now and now is not None
        return refusal(
            model,
            now.state if now is not None and now is life else None,
            is_draining=self.is_draining,
            is_back_soon=is_replaced or model in self.recycling.models,
        )

    def _state_of(self, model: ModelId) -> ReplicaState | None:
        life = self._lives.get(model)
        return None if life is None else life.state
