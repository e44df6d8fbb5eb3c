"""The life of a replica on its node, as a machine: `step(state, event) -> (state, effects)`.

A model that the node does not have is `None`. The supervisor feeds events and performs effects;
nothing here waits, logs or reads a clock.
"""

from typing import assert_never

import msgspec

from cortex_core.errors import ConflictError
from cortex_core.harness import ModelInfo, ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import LoadProgress, ReplicaStatus
from neuron.lifecycle.difference import difference
from neuron.lifecycle.events import (
    CancelLoad,
    DisposeEngine,
    Effect,
    EngineDied,
    Event,
    HastenDrain,
    LoadAsked,
    LoadEnded,
    LoadEvent,
    LoadFailed,
    LoadPlaced,
    LoadProgressed,
    RecoveryFailed,
    Refuse,
    RequestBegan,
    RequestEnded,
    Retry,
    SleepAsked,
    SleepEnded,
    SleepEvent,
    StartLoad,
    StartRecovery,
    StartSleep,
    StartUnload,
    StartWake,
    UnloadAsked,
    UnloadEnded,
    WakeAsked,
    WakeEnded,
    WakeRefused,
)
from neuron.lifecycle.rate import Meter
from neuron.lifecycle.recovery import FailureKind


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this node."""

    asked: ModelSpec
    """As it was asked for; a later load is compared with this."""
    status: ReplicaStatus
    since: float
    """Monotonic seconds of the last change of status."""
    devices: tuple[DeviceIndex, ...] = ()
    info: ModelInfo | None = None
    """Set while an engine is up, asleep or not."""
    progress: LoadProgress | None = None
    pace: Meter = Meter()
    """Of the stage that a load is in."""
    in_flight: int = 0
    last_used: float | None = None
    """Epoch seconds of the end of the latest request."""
    placed_at: float | None = None
    """Monotonic seconds at which the latest load or wake had its memory."""
    load_s: float | None = None
    """Seconds that the load took from there on: waiting for memory is not the model's."""
    wake_s: float | None = None
    """Likewise of the latest wake."""
    sleep_level: int | None = None
    """Of a model that sleeps, is falling asleep or is waking; `None` for all others."""
    host_used_bytes: int | None = None
    """Host memory that it holds while it sleeps."""
    error: str | None = None
    """Short reason of the last failure."""
    error_kind: FailureKind | None = None
    """Its kind; `None` when there was none."""
    retry: Retry | None = None
    """The attempt that is waited for, or made, while it is `recovering`."""

    @property
    def is_falling_asleep(self) -> bool:
        """Whether it is `unloading` in order to sleep."""
        return self.status is ReplicaStatus.UNLOADING and self.sleep_level is not None

    @property
    def is_waking(self) -> bool:
        """Whether it is `loading` from sleep."""
        return self.status is ReplicaStatus.LOADING and self.sleep_level is not None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event."""

    state: ReplicaState | None
    """`None` when the node does not have the model any more."""
    effects: tuple[Effect, ...] = ()
    """In the order in which they are to be performed."""


def step(state: ReplicaState | None, event: Event) -> Step:
    """Return the next state and what is to be done about it.

    An event that came too late for its state (an engine that dies while it is being closed, a
    progress after the end) changes nothing.
    """
    match event:
        case LoadAsked():
            return _load_asked(state, event)
        case UnloadAsked():
            return _unload_asked(state, event)
        case LoadPlaced() | LoadProgressed() | LoadEnded() | LoadFailed():
            return _loading(state, event)
        case UnloadEnded():
            gone = state is not None and state.status is ReplicaStatus.UNLOADING
            return Step(state=None if gone else state)
        case EngineDied():
            return _died(state, event)
        case RecoveryFailed():
            return _recovery_failed(state, event)
        case RequestBegan():
            return Step(state=_counted(state, 1))
        case RequestEnded():
            return Step(state=_counted(state, -1, event.now_epoch))
        case _:
            return Step(state=None) if state is None else _sleep_event(state, event)


def obeyed(after: Step) -> Step:
    """Return `after` unless it refuses the command.

    Raises:
        RequestError: why it does.
    """
    for effect in after.effects:
        if isinstance(effect, Refuse):
            raise effect.error
    return after


def _load_asked(state: ReplicaState | None, event: LoadAsked) -> Step:
    if state is None or state.status is ReplicaStatus.FAILED:
        fresh = ReplicaState(
            asked=event.spec,
            status=ReplicaStatus.LOADING,
            since=event.now,
            devices=event.spec.devices,
            progress=LoadProgress(stage="queued"),
            last_used=state.last_used if state is not None else None,
        )
        return Step(state=fresh, effects=(StartLoad(spec=event.spec),))
    if state.status is ReplicaStatus.UNLOADING:
        return _refused(state, f"{_leaving(state)}; load it when that is done")
    differs = difference(event.spec, state.asked, state.devices)
    if differs is not None:
        is_now = f"{_name(state)!r} is {state.status.value} otherwise: {differs}; unload it first"
        return _refused(state, is_now)
    if state.status is ReplicaStatus.SLEEPING:
        return _wake_asked(state, event.now)
    return Step(state=state)


def _unload_asked(state: ReplicaState | None, event: UnloadAsked) -> Step:
    if state is None or state.status is ReplicaStatus.FAILED:
        return Step(state=None)
    if state.status is ReplicaStatus.UNLOADING and not state.is_falling_asleep:
        return Step(state=state, effects=(HastenDrain(drain_timeout_s=event.drain_timeout_s),))
    if _is_coming(state) and not state.is_waking:
        effects: tuple[Effect, ...] = (CancelLoad(),)
    else:
        effects = (StartUnload(drain_timeout_s=event.drain_timeout_s),)
    leaving = msgspec.structs.replace(
        _with_status(state, ReplicaStatus.UNLOADING, event.now),
        sleep_level=None,
        host_used_bytes=None,
        retry=None,
    )
    return Step(state=leaving, effects=effects)


def _loading(state: ReplicaState | None, event: LoadEvent) -> Step:
    if state is None or not _is_coming(state):
        return Step(state=state)
    if isinstance(event, LoadProgressed):
        return Step(state=_progressed(state, event))
    if isinstance(event, LoadPlaced):
        placed = msgspec.structs.replace(state, devices=event.devices, placed_at=event.now)
        return Step(state=placed)
    if state.is_waking:
        return Step(state=state)
    match event:
        case LoadEnded():
            loaded = msgspec.structs.replace(
                _with_status(state, ReplicaStatus.LOADED, event.now),
                info=event.info,
                load_s=_taken_s(state, event.now),
                error=None,
                error_kind=None,
                retry=None,
            )
            return Step(state=loaded)
        case LoadFailed():
            if state.status is ReplicaStatus.RECOVERING:
                # It was told to stop, or `RecoveryFailed` says what comes of it.
                return Step(state=state)
            if event.is_refused:
                return Step(state=None)
            return Step(state=_as_failed(state, event.error, event.kind, event.now))
        case _:
            assert_never(event)


def _sleep_event(state: ReplicaState, event: SleepEvent) -> Step:
    match event:
        case SleepAsked():
            return _sleep_asked(state, event)
        case WakeAsked():
            return _wake_asked(state, event.now)
        case SleepEnded():
            return _fell_asleep(state, event)
        case WakeEnded() | WakeRefused():
            return _woke(state, event)
        case _:
            assert_never(event)


def _sleep_asked(state: ReplicaState, event: SleepAsked) -> Step:
    if state.status is ReplicaStatus.SLEEPING or state.is_falling_asleep:
        if state.sleep_level != event.level:
            return _refused(
                state, f"{_name(state)!r} sleeps at level {state.sleep_level}; wake it first"
            )
        hasten = HastenDrain(drain_timeout_s=event.drain_timeout_s)
        return Step(state=state, effects=(hasten,) if state.is_falling_asleep else ())
    if state.status is not ReplicaStatus.LOADED or state.info is None:
        return _refused(
            state, f"{_name(state)!r} is {state.status.value}; only what is loaded can sleep"
        )
    if not state.info.capabilities.sleep:
        return _refused(state, f"the engine of {_name(state)!r} cannot sleep here; unload it")
    falling = msgspec.structs.replace(
        _with_status(state, ReplicaStatus.UNLOADING, event.now), sleep_level=event.level
    )
    start = StartSleep(level=event.level, drain_timeout_s=event.drain_timeout_s)
    return Step(state=falling, effects=(start,))


def _fell_asleep(state: ReplicaState, event: SleepEnded) -> Step:
    if not state.is_falling_asleep:
        return Step(state=state)
    asleep = msgspec.structs.replace(
        _with_status(state, ReplicaStatus.SLEEPING, event.now),
        host_used_bytes=event.host_used_bytes,
    )
    return Step(state=asleep)


def _wake_asked(state: ReplicaState, now: float) -> Step:
    match state.status:
        case ReplicaStatus.SLEEPING:
            waking = msgspec.structs.replace(
                _with_status(state, ReplicaStatus.LOADING, now),
                progress=LoadProgress(stage="waking"),
                placed_at=None,
            )
            return Step(state=waking, effects=(StartWake(),))
        case ReplicaStatus.LOADED | ReplicaStatus.LOADING | ReplicaStatus.RECOVERING:
            return Step(state=state)
        case ReplicaStatus.UNLOADING:
            return _refused(state, f"{_leaving(state)}; wake it when that is done")
        case _:
            return _refused(state, f"{_name(state)!r} is {state.status.value}; load it")


def _woke(state: ReplicaState, event: WakeEnded | WakeRefused) -> Step:
    if not state.is_waking:
        return Step(state=state)
    if isinstance(event, WakeEnded):
        awake = msgspec.structs.replace(
            _with_status(state, ReplicaStatus.LOADED, event.now),
            wake_s=_taken_s(state, event.now),
            sleep_level=None,
            host_used_bytes=None,
            error=None,
            error_kind=None,
        )
        return Step(state=awake)
    return Step(state=_with_status(state, ReplicaStatus.SLEEPING, event.now))


def _died(state: ReplicaState | None, event: EngineDied) -> Step:
    if state is None or (state.status is not ReplicaStatus.LOADED and state.sleep_level is None):
        return Step(state=state)
    dispose = DisposeEngine(error=event.error)
    if event.retry is None:
        failed = _as_failed(state, event.error, event.kind, event.now)
        return Step(state=failed, effects=(dispose,))
    if state.status is not ReplicaStatus.LOADED and not state.is_waking:
        # Asleep, or on its way there: its memory is wanted for something else.
        return Step(state=None, effects=(dispose,))
    coming = _as_coming(state, event.error, event.kind, event.retry, event.now)
    # Its requests belong to the engine that died, and end with it.
    coming = msgspec.structs.replace(coming, in_flight=0)
    return Step(state=coming, effects=(dispose, StartRecovery(attempt=event.retry.attempt)))


def _recovery_failed(state: ReplicaState | None, event: RecoveryFailed) -> Step:
    if state is None or state.status is not ReplicaStatus.RECOVERING:
        return Step(state=state)
    if event.retry is None:
        return Step(state=_as_failed(state, event.error, event.kind, event.now))
    return Step(state=_as_coming(state, event.error, event.kind, event.retry, event.now))


def _as_failed(state: ReplicaState, error: str, kind: FailureKind, now: float) -> ReplicaState:
    return msgspec.structs.replace(
        _with_status(state, ReplicaStatus.FAILED, now),
        info=None,
        sleep_level=None,
        host_used_bytes=None,
        error=error,
        error_kind=kind,
        retry=None,
    )


def _as_coming(
    state: ReplicaState, error: str, kind: FailureKind, retry: Retry, now: float
) -> ReplicaState:
    return msgspec.structs.replace(
        _with_status(state, ReplicaStatus.RECOVERING, now),
        info=None,
        placed_at=None,
        sleep_level=None,
        host_used_bytes=None,
        error=error,
        error_kind=kind,
        retry=retry,
    )


def _is_coming(state: ReplicaState) -> bool:
    return state.status in (ReplicaStatus.LOADING, ReplicaStatus.RECOVERING)


def _taken_s(state: ReplicaState, now: float) -> float:
    return now - (state.since if state.placed_at is None else state.placed_at)


def _with_status(state: ReplicaState, status: ReplicaStatus, now: float) -> ReplicaState:
    return msgspec.structs.replace(state, status=status, since=now, progress=None)


def _refused(state: ReplicaState, why: str) -> Step:
    return Step(state=state, effects=(Refuse(error=ConflictError(why)),))


def _leaving(state: ReplicaState) -> str:
    what = "put to sleep" if state.is_falling_asleep else "unloaded"
    return f"{_name(state)!r} is being {what}"


def _name(state: ReplicaState) -> ModelId:
    return state.asked.model


def _progressed(state: ReplicaState, event: LoadProgressed) -> ReplicaState:
    done, total = event.done_bytes, event.total_bytes
    # Each stage has a pace of its own.
    is_same = state.progress is not None and state.progress.stage == event.stage
    pace = state.pace if is_same else Meter()
    if done is not None:
        pace = pace.with_sample(event.now, done)
    rate = pace.bytes_per_s
    progress = LoadProgress(
        stage=event.stage,
        done_bytes=done,
        total_bytes=total,
        bytes_per_s=rate,
        eta_s=max(0, total - done) / rate if rate and done is not None and total else None,
    )
    return msgspec.structs.replace(state, progress=progress, pace=pace)


def _counted(
    state: ReplicaState | None, change: int, last_used: float | None = None
) -> ReplicaState | None:
    # A request may outlive its replica by a moment: the model was unloaded under it.
    if state is None:
        return None
    return msgspec.structs.replace(
        state,
        in_flight=max(0, state.in_flight + change),
        last_used=state.last_used if last_used is None else last_used,
    )
