"""The life of a replica on its node, as a machine: `step(state, event) -> (state, effects)`.

A model that the node does not have is `None`. The supervisor feeds events and performs effects;
nothing here waits, logs or reads a clock.
"""

from collections.abc import Mapping
from typing import assert_never

import msgspec

from cortex_core.errors import ConflictError, RequestError
from cortex_core.harness import ModelInfo, ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.replica import LoadProgress, ReplicaStatus


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this node."""

    asked: ModelSpec
    """As it was asked for; a later load is compared with this."""
    status: ReplicaStatus
    since: float
    """Monotonic seconds of the last change of status."""
    devices: tuple[DeviceIndex, ...] = ()
    info: ModelInfo | None = None
    """Set while an engine is up."""
    progress: LoadProgress | None = None
    in_flight: int = 0
    last_used: float | None = None
    """Epoch seconds of the end of the latest request."""
    load_s: float | None = None
    error: str | None = None
    """Short reason of the last failure."""


class LoadAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the model."""

    spec: ModelSpec
    now: float


class LoadPlaced(msgspec.Struct, frozen=True, kw_only=True):
    """The load got its devices and its memory."""

    devices: tuple[DeviceIndex, ...]


class LoadProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """The harness said how far it is."""

    stage: str
    done_bytes: int | None
    total_bytes: int | None
    now: float


class LoadEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The engine is up."""

    info: ModelInfo
    now: float


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True):
    """There will be no engine."""

    error: str
    now: float
    is_refused: bool = False
    """The load was not possible here and now, which says nothing of the model: it is forgotten."""


class UnloadAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the memory back."""

    now: float
    drain_timeout_s: float
    """How long running requests may go on; 0 cuts them."""


class UnloadEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The engine is closed and its memory free."""


class EngineDied(msgspec.Struct, frozen=True, kw_only=True):
    """The engine ended by itself."""

    error: str
    now: float


class RequestBegan(msgspec.Struct, frozen=True, kw_only=True):
    """A request was admitted."""


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A request ended, however."""

    now_epoch: float


Event = (
    LoadAsked
    | LoadPlaced
    | LoadProgressed
    | LoadEnded
    | LoadFailed
    | UnloadAsked
    | UnloadEnded
    | EngineDied
    | RequestBegan
    | RequestEnded
)


class StartLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Bring up an engine; everybody who asks meanwhile joins."""

    spec: ModelSpec


class CancelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Undo the load under way; its askers get an error."""


class StartUnload(msgspec.Struct, frozen=True, kw_only=True):
    """Drain, then close the engine."""

    drain_timeout_s: float


class HastenUnload(msgspec.Struct, frozen=True, kw_only=True):
    """An unload is under way; shorten its drain if the new bound ends sooner."""

    drain_timeout_s: float


class DisposeEngine(msgspec.Struct, frozen=True, kw_only=True):
    """Free what a dead engine left, and end its requests."""

    error: str


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """The command is answered with an error; nothing changed."""

    error: RequestError


Effect = StartLoad | CancelLoad | StartUnload | HastenUnload | DisposeEngine | Refuse


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
        case RequestBegan():
            return Step(state=_counted(state, 1))
        case RequestEnded():
            return Step(state=_counted(state, -1, event.now_epoch))
        case _:
            assert_never(event)


def difference(asked: ModelSpec, held: ModelSpec, devices: tuple[DeviceIndex, ...]) -> str | None:
    """Say in what `asked` differs from what is loaded, or `None` when it would be the same.

    Devices count only when they are named, tensor parallelism only when it is stated, and the
    estimate of memory never.
    """
    for name in ("harness", "quant"):
        mine, theirs = getattr(asked, name), getattr(held, name)
        if mine != theirs:
            return f"{name} is {theirs!r} and {mine!r} was asked for"
    if asked.devices and devices and asked.devices != devices:
        return f"devices are {list(devices)} and {list(asked.devices)} were asked for"
    parallel = held.tensor_parallel or max(1, len(devices))
    if asked.tensor_parallel is not None and asked.tensor_parallel != parallel:
        return f"tensor_parallel is {parallel} and {asked.tensor_parallel} was asked for"
    return _engine_difference(asked.engine, held.engine)


def _engine_difference(asked: Mapping[str, object], held: Mapping[str, object]) -> str | None:
    for option in sorted({*asked, *held}):
        if asked.get(option) != held.get(option):
            return (
                f"engine.{option} is {held.get(option)!r} and {asked.get(option)!r} was asked for"
            )
    return None


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
        busy = ConflictError(f"{event.spec.model!r} is being unloaded; load it when that is done")
        return Step(state=state, effects=(Refuse(error=busy),))
    differs = difference(event.spec, state.asked, state.devices)
    if differs is not None:
        error = ConflictError(
            f"{event.spec.model!r} is {state.status.value} otherwise: {differs}; unload it first"
        )
        return Step(state=state, effects=(Refuse(error=error),))
    return Step(state=state)


def _unload_asked(state: ReplicaState | None, event: UnloadAsked) -> Step:
    if state is None:
        return Step(state=None)
    match state.status:
        case ReplicaStatus.FAILED:
            return Step(state=None)
        case ReplicaStatus.UNLOADING:
            return Step(state=state, effects=(HastenUnload(drain_timeout_s=event.drain_timeout_s),))
        case ReplicaStatus.LOADING:
            effects: tuple[Effect, ...] = (CancelLoad(),)
        case _:
            effects = (StartUnload(drain_timeout_s=event.drain_timeout_s),)
    leaving = msgspec.structs.replace(
        state, status=ReplicaStatus.UNLOADING, since=event.now, progress=None
    )
    return Step(state=leaving, effects=effects)


def _loading(
    state: ReplicaState | None, event: LoadPlaced | LoadProgressed | LoadEnded | LoadFailed
) -> Step:
    if state is None or state.status is not ReplicaStatus.LOADING:
        return Step(state=state)
    match event:
        case LoadPlaced():
            return Step(state=msgspec.structs.replace(state, devices=event.devices))
        case LoadProgressed():
            return Step(state=msgspec.structs.replace(state, progress=_progress(state, event)))
        case LoadEnded():
            loaded = msgspec.structs.replace(
                state,
                status=ReplicaStatus.LOADED,
                since=event.now,
                info=event.info,
                load_s=event.now - state.since,
                progress=None,
                error=None,
            )
            return Step(state=loaded)
        case LoadFailed():
            if event.is_refused:
                return Step(state=None)
            return Step(state=_as_failed(state, event.error, event.now))
        case _:
            assert_never(event)


def _progress(state: ReplicaState, event: LoadProgressed) -> LoadProgress:
    eta_s = None
    done, total = event.done_bytes, event.total_bytes
    elapsed_s = event.now - state.since
    if done and total and total >= done:
        eta_s = elapsed_s * (total - done) / done
    return LoadProgress(stage=event.stage, done_bytes=done, total_bytes=total, eta_s=eta_s)


def _died(state: ReplicaState | None, event: EngineDied) -> Step:
    if state is None or state.status is not ReplicaStatus.LOADED:
        return Step(state=state)
    dispose = DisposeEngine(error=event.error)
    return Step(state=_as_failed(state, event.error, event.now), effects=(dispose,))


def _as_failed(state: ReplicaState, error: str, now: float) -> ReplicaState:
    return msgspec.structs.replace(
        state, status=ReplicaStatus.FAILED, since=now, info=None, progress=None, error=error
    )


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
