"""A replica: one model on one node, as its neuron reported it last."""

import enum

import msgspec

from cortex_core.harness import Capabilities, Limit
from cortex_core.ids import DeviceIndex, ModelId, ReplicaId


class ReplicaStatus(enum.StrEnum):
    """Life cycle of a replica, by its name on the wire."""

    LOADING = "loading"
    LOADED = "loaded"
    SLEEPING = "sleeping"
    UNLOADING = "unloading"
    RELOADING = "reloading"
    RECOVERING = "recovering"
    FAILED = "failed"
    POISONED = "poisoned"
    UNLOADED = "unloaded"
    FOLLOWING = "following"
    """A part of a copy whose head is on another node; never routable."""
    UNKNOWN = "unknown"
    """A status of a newer neuron; never routable."""

    @classmethod
    def from_wire(cls, status: str) -> "ReplicaStatus":
        """Return the member for `status`, or `UNKNOWN`."""
        return cls(status) if status in cls._value2member_map_ else cls.UNKNOWN


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a load is."""

    stage: str
    """Such as `queued`, `downloading`, `weights`, `warming`."""
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    """Over the last seconds of the stage."""
    eta_s: float | None = None


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """State of one replica."""

    id: ReplicaId
    status: ReplicaStatus
    harness: str = ""
    devices: tuple[DeviceIndex, ...] = ()
    vram_used_bytes: int | None = None
    capabilities: Capabilities | None = None
    """`None` when the neuron does not say."""
    limit: Limit | None = None
    in_flight: int = 0
    """Requests in the engine, from every gateway."""
    queued: int = 0
    """Requests that wait at the neuron."""
    kv_cache_usage: float | None = None
    """Share of KV-cache blocks in use, in [0, 1]."""
    last_used: float | None = None
    """Epoch seconds of the end of the latest request."""
    load_s: float | None = None
    """Seconds that the last load took."""
    wake_s: float | None = None
    """Seconds that the last wake took."""
    sleep_level: int | None = None
    """1 keeps the weights in host memory, 2 drops them; while it sleeps."""
    host_used_bytes: int | None = None
    """Host memory that it holds while it sleeps."""
    is_pinned: bool = False
    """An operator wants it to stay on its node."""
    max_in_flight: int | None = None
    """Requests that its engine runs together; `None` when the neuron does not say."""
    progress: LoadProgress | None = None
    unservable_reason: str | None = None
    """Why it takes no requests although its status is loaded; `None` when it does."""
    error: str | None = None
    """Short reason of the last failure."""
    base: ModelId | None = None
    """Model on whose engine it is, where it is an adapter."""
    endpoint: str | None = None
    """Base URL that takes its requests; `None` means its node's."""

    @property
    def is_servable(self) -> bool:
        """Whether a request may be sent to it."""
        return self.status is ReplicaStatus.LOADED and self.unservable_reason is None

    @property
    def is_busy(self) -> bool:
        """Whether requests are with it."""
        return bool(self.in_flight or self.queued)

    @property
    def holds_memory(self) -> bool:
        """Whether it occupies device memory, or is about to."""
        return self.status in _HOLDING


_HOLDING = frozenset(
    {
        ReplicaStatus.LOADING,
        ReplicaStatus.LOADED,
        ReplicaStatus.UNLOADING,
        ReplicaStatus.RELOADING,
        ReplicaStatus.RECOVERING,
        ReplicaStatus.FOLLOWING,
        ReplicaStatus.UNKNOWN,
    }
)
