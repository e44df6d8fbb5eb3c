"""What happens to a replica, and what is to be done about it."""

import msgspec

from cortex_core.errors import RequestError
from cortex_core.harness import ModelInfo, ModelSpec
from cortex_core.ids import DeviceIndex
from neuron.lifecycle.recovery import Attempt, FailureKind


class LoadAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the model."""

    spec: ModelSpec
    now: float


class LoadPlaced(msgspec.Struct, frozen=True, kw_only=True):
    """A load or a wake got its devices and its memory."""

    devices: tuple[DeviceIndex, ...]
    now: float


class LoadProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """The harness said how far a load is, or the neuron how far a wake is."""

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
    kind: FailureKind = FailureKind.UNKNOWN
    is_refused: bool = False
    """The load was not possible here and now, which says nothing of the model: it is forgotten."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A failed engine will be brought back."""

    attempt: Attempt
    at_epoch: float
    """When, in epoch seconds."""


class SleepAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the device memory back, and the model quickly again later."""

    level: int
    now: float
    drain_timeout_s: float
    """How long running requests may go on; 0 cuts them."""


class SleepEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The engine sleeps and its device memory is free."""

    host_used_bytes: int
    now: float


class WakeAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants a model that sleeps."""

    now: float


class WakeEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The engine is as it was before it slept."""

    now: float


class WakeRefused(msgspec.Struct, frozen=True, kw_only=True):
    """There was no memory for it, and nothing has been done to it: it sleeps on."""

    now: float


class UnloadAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the memory back."""

    now: float
    drain_timeout_s: float
    """How long running requests may go on; 0 cuts them."""


class UnloadEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The engine is closed and its memory free."""


class EngineDied(msgspec.Struct, frozen=True, kw_only=True):
    """The engine ended by itself, or is of no use any more."""

    error: str
    now: float
    kind: FailureKind = FailureKind.DIED
    retry: Retry | None = None
    """When it is brought back; `None` is not at all."""


class RecoveryFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A failed engine was not brought back by the latest attempt."""

    error: str
    now: float
    kind: FailureKind
    retry: Retry | None
    """When the next attempt is made; `None` gives it up."""


class RequestBegan(msgspec.Struct, frozen=True, kw_only=True):
    """A request was admitted."""


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A request ended, however."""

    now_epoch: float


LoadEvent = LoadPlaced | LoadProgressed | LoadEnded | LoadFailed

SleepEvent = SleepAsked | SleepEnded | WakeAsked | WakeEnded | WakeRefused

Event = (
    LoadAsked
    | LoadEvent
    | SleepEvent
    | UnloadAsked
    | UnloadEnded
    | EngineDied
    | RecoveryFailed
    | RequestBegan
    | RequestEnded
)


class StartLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Bring up an engine; everybody who asks meanwhile joins."""

    spec: ModelSpec


class CancelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Undo the load or the recovery under way; its askers get an error."""


class StartSleep(msgspec.Struct, frozen=True, kw_only=True):
    """Drain, then put the engine to sleep."""

    level: int
    drain_timeout_s: float


class StartWake(msgspec.Struct, frozen=True, kw_only=True):
    """Wake the engine; everybody who asks meanwhile joins."""


class StartUnload(msgspec.Struct, frozen=True, kw_only=True):
    """Give up what else is done with the engine, drain, then close it."""

    drain_timeout_s: float


class HastenDrain(msgspec.Struct, frozen=True, kw_only=True):
    """A drain is under way; shorten it if the new bound ends sooner."""

    drain_timeout_s: float


class DisposeEngine(msgspec.Struct, frozen=True, kw_only=True):
    """Free what an engine that is of no use any more left, and end its requests."""

    error: str


class StartRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """Bring the engine back once the dead one is gone; everybody who asks meanwhile joins."""

    attempt: Attempt


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """The command is answered with an error; nothing changed."""

    error: RequestError


Effect = (
    StartLoad
    | CancelLoad
    | StartSleep
    | StartWake
    | StartUnload
    | HastenDrain
    | DisposeEngine
    | StartRecovery
    | Refuse
)
