"""The neuron's control messages and reports.

Fields without a default are the given ones that every neuron sends; all others may be absent.
Sizes named `*_mb` are MiB. Unknown fields are ignored, so that a gateway and a neuron one
version apart still work together.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from cortex_core.harness import Capabilities, EngineVersion, Limit


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A direct connection between two devices of a node."""

    peer: int
    """Index of the other device."""
    kind: str
    """Such as `nvlink` or `pcie`."""


class DiscoveredDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device in `/discovery`."""

    index: int
    name: str
    vram_total_mb: int | None = None
    compute_capability: str | None = None
    uuid: str | None = None
    mig: bool = False
    numa_node: int | None = None
    links: tuple[Link, ...] = ()
    pcie_max_generation: int | None = None
    """What device and machine can do together."""
    pcie_max_width: int | None = None
    """Lanes, likewise."""


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /discovery`."""

    hostname: str
    devices: tuple[DiscoveredDevice, ...] = ()
    harnesses: tuple[str, ...] = ()
    os: str = ""
    kernel: str = ""
    cuda_version: str | None = None
    driver_version: str | None = None
    boot_id: str | None = None
    version: str | None = None
    cuda_unavailable_reason: str | None = None
    engines: tuple[EngineVersion, ...] = ()


class DeviceProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that has a device open."""

    pid: int
    """As the driver sees it; in a container that may be another than here."""
    used_mb: int | None = None
    model: str | None = None
    """Whose engine it belongs to; `None` for a stranger, or when that is not known."""


class DeviceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A device in `/health`; `None` is not known."""

    index: int
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: float | None = None
    temp_c: float | None = None
    leaked_mb: int | None = None
    """What engines that are closed did not give back."""
    other_mb: int | None = None
    """What is used that no model here accounts for: other processes' memory, and what leaked."""
    condition: str | None = None
    """As in `DeviceCondition`."""
    condition_reason: str | None = None
    xids: tuple[int, ...] = ()
    """Numbers of the latest faults that the driver reported, the last one last."""
    memory_busy_pct: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttled: tuple[str, ...] | None = None
    """Why its clocks are held down; empty when they are not."""
    ecc_corrected: int | None = None
    """Errors in memory since the driver was loaded."""
    ecc_uncorrected: int | None = None
    repair_pending: bool | None = None
    """Broken memory is replaced at the next reset."""
    repair_failed: bool | None = None
    """Broken memory could not be replaced."""
    recovery_action: str | None = None
    """What the driver says has to be done with it."""
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlinks: int | None = None
    """Links that are up."""
    processes: tuple[DeviceProcess, ...] | None = None
    """Those that have it open."""
    busy_with: str | None = None
    """What its worker does now; `None` when it waits for work."""
    busy_s: float | None = None
    """For how long."""


class ActivationFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A default model that did not load."""

    model_id: str
    error: str
    retry_s: float | None = None
    """Seconds until it is tried again; `None` is not tried again."""


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """How far the loading of `default_models` is."""

    state: str
    """`pre_warming` or `ready`."""
    pending: tuple[str, ...] = ()
    in_progress: str | None = None
    completed: tuple[str, ...] = ()
    failed: tuple[ActivationFailure, ...] = ()


class ModelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a model is, in `/health`."""

    id: str
    status: str
    in_flight: int = 0
    queued: int = 0
    kv_cache_usage: float | None = None
    tok_s_prefill: float | None = None
    tok_s_decode: float | None = None
    last_step_age_s: float | None = None
    """For how long its engine has made no step although it has work; `None` has none."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What earlier loads of a model on this node came to; kept over restarts of the neuron."""

    id: str
    vram_mb: int | None = None
    """Device memory that it held, over all its devices."""
    load_s: float | None = None
    wake_s: float | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /health`."""

    uptime_secs: float
    devices: tuple[DeviceHealth, ...] = ()
    activation: Activation | None = None
    boot_id: str | None = None
    models: tuple[ModelLoad, ...] = ()
    draining: bool = False
    cordoned: bool = False
    """Somebody wants nothing new to be loaded here; what is here serves on."""
    sleep_budget_mb: int | None = None
    """Host memory that sleeping models may hold together; `None` where nothing can sleep."""
    sleep_used_mb: int | None = None
    """What they hold of it now."""
    cycles: int | None = None
    """Loads that ended in an unload since the engines were recycled last."""
    recycling: bool = False
    """Its engine processes are being replaced; what was loaded will be back."""
    measured: tuple[Measured, ...] = ()
    """What is known of models from earlier loads, also of those that are not here now."""


class Servable(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model takes requests now."""

    ok: bool
    reason: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a load is."""

    stage: str
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    """Over the last seconds of the stage."""
    eta_s: float | None = None


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """How a model whose engine failed is being brought back."""

    attempts: int
    """Failures of late, with which the model is given up once they are too many."""
    next_attempt: float
    """Epoch seconds of the attempt that is waited for, or under way."""


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """A model in `GET /models` and in `model` events."""

    id: str
    harness: str = ""
    status: str = "loaded"
    devices: tuple[int, ...] = ()
    vram_used_mb: int | None = None
    capabilities: Capabilities | None = None
    limit: Limit | None = None
    last_used: float | None = None
    """Epoch seconds."""
    load_s: float | None = None
    wake_s: float | None = None
    """Seconds that the last wake took."""
    sleep_level: int | None = None
    """1 keeps the weights in host memory, 2 drops them; while it sleeps."""
    host_used_mb: int | None = None
    """Host memory that it holds while it sleeps."""
    pinned: bool = False
    """Somebody wants it to stay here."""
    max_in_flight: int | None = None
    """Requests that its engine runs together; more wait inside it."""
    servable: Servable | None = None
    progress: Progress | None = None
    error: str | None = None
    error_kind: str | None = None
    """What kind of failure `error` tells of, of a closed set: such as `out_of_memory`."""
    recovery: Recovery | None = None
    """While it is `recovering`."""
    peers: tuple[str, ...] = ()
    """Base URLs of the other nodes that hold a part of this copy; the head says them."""
    head: str | None = None
    """The node that answers for this copy, where only a part of it is here."""
    base: str | None = None


class PeerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Another node that is to hold a part of the same copy, in `LoadRequest`."""

    endpoint: str
    """Base URL of its neuron."""
    devices: tuple[int, ...] | None = None
    """`None` lets its neuron choose."""


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /models/load`."""

    model_id: str
    harness: str
    quant: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    devices: tuple[int, ...] | None = None
    """`None` lets the neuron choose."""
    engine: Mapping[str, object] = msgspec.field(default_factory=dict)
    vram_mb: int | None = None
    """The catalogue's estimate over all devices of all nodes."""
    max_in_flight: int | None = None
    """Requests that are with its engine at once; `None` takes the neuron's settings, as below."""
    max_queue: int | None = None
    """Requests that wait for one of those places."""
    max_wait_s: float | None = None
    """How long one waits before it is refused."""
    max_share: float | None = None
    """Part of the places and of the queue that one caller has, in (0, 1]."""
    automatic: bool = False
    """A program decided it. What failed too often here stays given up then; an operator's load
    starts afresh."""
    peers: tuple[PeerRequest, ...] | None = None
    """Other nodes that hold a part of the same copy, in rank order."""
    base: str | None = None
    """Model whose engine it is added to, where it is an adapter."""
    adapter: str | None = None
    """Where the adapter is: hub id or path; `None` is `model_id`."""


SPEC_HEADER = "x-cortex-spec"
"""Header of a request about the tokens of a model that is not loaded: a `LoadRequest` as JSON in
base64, which says how it would be loaded."""


class FollowerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /followers`: from the neuron that owns a copy to those that hold a part."""

    model_id: str
    harness: str
    group: str
    """Tells this group from every other one."""
    rank: int
    nodes: int
    address: str
    """Of the head, where the engine's processes find each other."""
    port: int
    """There."""
    head: str = ""
    """How the head calls itself, for people."""
    quant: str | None = None
    tensor_parallel: int | None = None
    """Over all nodes, like `pipeline_parallel`."""
    pipeline_parallel: int | None = None
    devices: tuple[int, ...] | None = None
    """`None` lets the neuron choose."""
    engine: Mapping[str, object] = msgspec.field(default_factory=dict)
    vram_mb: int | None = None
    """Estimate over the devices of this node."""


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Data of a `joined` event: a follower has its memory and its devices, and starts."""

    devices: tuple[int, ...] = ()


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /models/unload`."""

    model_id: str
    drain_timeout_s: float | None = None
    """How long running requests may go on; `None` takes the neuron's setting."""
    force: bool = False
    """Cut running requests at once."""


class SleepRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /models/sleep`."""

    model_id: str
    level: Literal[1, 2] = 1
    drain_timeout_s: float | None = None
    """How long running requests may go on; `None` takes the neuron's setting."""


class WakeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /models/wake`."""

    model_id: str


class PinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /models/pin`; holds for a model that is not loaded as well."""

    model_id: str
    pinned: bool = True


class CordonRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /cordon`."""

    cordoned: bool = True


class StatusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of a control command that succeeded."""

    status: Literal[
        "loaded",
        "loading",
        "unloaded",
        "sleeping",
        "pinned",
        "unpinned",
        "cordoned",
        "uncordoned",
        "recycled",
    ]


class EndpointAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /models/{id}/endpoint`."""

    url: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Data of a `snapshot` event: everything, sent first and after a gap."""

    discovery: Discovery
    health: Health
    models: tuple[ModelReport, ...]


SNAPSHOT_EVENT = "snapshot"
"""Event name of a `Snapshot`: replaces all that was known of the node."""

MODEL_EVENT = "model"
"""Event name of a `ModelReport`: replaces that model; status `unloaded` removes it."""

JOINED_EVENT = "joined"
"""Event name of a `Joined`, on the stream that a head holds open."""

HEALTH_EVENT = "health"
"""Event name of a `Health`: devices, activation, how busy each model is, draining."""
