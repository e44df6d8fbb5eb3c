"""A node: the machine, what its neuron discovered, and what it reports."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.ids import BootId, DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.units import bytes_from_mib
from cortex_core.wire.neuron import Activation, DeviceHealth, Discovery, Health, ModelReport

_OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})  # noqa: S104 - read, not bound


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What discovery found; the same for one life of the neuron."""

    hostname: str
    devices: tuple[Device, ...]
    harnesses: tuple[str, ...]
    boot_id: BootId | None = None
    version: str | None = None
    cuda_unavailable_reason: str | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What earlier loads of a model on a node came to; `None` is not known."""

    vram_bytes: int | None = None
    """Device memory that it held, over all its devices."""
    load_s: float | None = None
    wake_s: float | None = None


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a neuron said of its changing state."""

    replicas: tuple[Replica, ...]
    """In the neuron's order; each model at most once."""
    devices: tuple[DeviceReading, ...] = ()
    activation: Activation | None = None
    boot_id: BootId | None = None
    is_draining: bool = False
    is_cordoned: bool = False
    is_recycling: bool = False
    sleep_budget_bytes: int | None = None
    """Host memory that sleeping models may hold together; `None` where nothing can sleep."""
    sleep_used_bytes: int | None = None
    cycles: int | None = None
    """Loads that ended in an unload since the engines were recycled last."""
    measured: Mapping[ModelId, Measured] = msgspec.field(default_factory=dict)


def facts_from_wire(discovery: Discovery) -> NodeFacts:
    """Return the facts in a `/discovery` answer."""
    return NodeFacts(
        hostname=discovery.hostname,
        devices=tuple(
            Device(
                index=DeviceIndex(device.index),
                name=device.name,
                vram_total_bytes=bytes_from_mib(device.vram_total_mb or 0),
                compute_capability=device.compute_capability or "",
                uuid=device.uuid,
                mig=device.mig,
                numa_node=device.numa_node,
                pcie_max_generation=device.pcie_max_generation,
                pcie_max_width=device.pcie_max_width,
            )
            for device in discovery.devices
        ),
        harnesses=discovery.harnesses,
        boot_id=BootId(discovery.boot_id) if discovery.boot_id else None,
        version=discovery.version,
        cuda_unavailable_reason=discovery.cuda_unavailable_reason,
    )


def report_from_wire(
    node: NodeName, models: Sequence[ModelReport], health: Health | None
) -> NodeReport:
    """Join a `/models` and a `/health` answer; a neuron of the given kind may lack parts."""
    busy = {entry.id: entry for entry in health.models} if health else {}
    replicas = []
    for model in models:
        replica = _replica(node, model)
        load = busy.get(model.id)
        if load is not None:
            replica = msgspec.structs.replace(
                replica,
                in_flight=load.in_flight,
                queued=load.queued,
                kv_cache_usage=load.kv_cache_usage,
            )
        replicas.append(replica)
    if health is None:
        return NodeReport(replicas=tuple(replicas))
    return NodeReport(
        replicas=tuple(replicas),
        devices=tuple(_reading(device) for device in health.devices),
        activation=health.activation,
        boot_id=BootId(health.boot_id) if health.boot_id else None,
        is_draining=health.draining,
        is_cordoned=health.cordoned,
        is_recycling=health.recycling,
        sleep_budget_bytes=_bytes(health.sleep_budget_mb),
        sleep_used_bytes=_bytes(health.sleep_used_mb),
        cycles=health.cycles,
        measured={
            ModelId(one.id): Measured(
                vram_bytes=_bytes(one.vram_mb), load_s=one.load_s, wake_s=one.wake_s
            )
            for one in health.measured
        },
    )


def reachable_url(told: str, configured: str) -> str:
    """Return where a URL that a neuron told of itself is reached from outside.

    A loopback or wildcard host means the neuron's own machine, so the host that is configured for
    the node takes its place; scheme and port stay as told.

    Args:
        told: as `/models/{id}/endpoint` gives it.
        configured: the node's endpoint.
    """
    url = urlsplit(told)
    if url.hostname not in _OWN_HOSTS:
        return told.rstrip("/")
    host = urlsplit(configured).hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if url.port is None else f":{url.port}"
    return f"{url.scheme}://{host}{port}{url.path}".rstrip("/")


def _replica(node: NodeName, report: ModelReport) -> Replica:
    progress = None
    if report.progress is not None:
        progress = LoadProgress(
            stage=report.progress.stage,
            done_bytes=report.progress.done_bytes,
            total_bytes=report.progress.total_bytes,
            bytes_per_s=report.progress.bytes_per_s,
            eta_s=report.progress.eta_s,
        )
    servable = report.servable
    return Replica(
        id=ReplicaId(node=node, model=ModelId(report.id)),
        status=ReplicaStatus.from_wire(report.status),
        harness=report.harness,
        devices=tuple(DeviceIndex(index) for index in report.devices),
        vram_used_bytes=_bytes(report.vram_used_mb),
        capabilities=report.capabilities,
        limit=report.limit,
        last_used=report.last_used,
        load_s=report.load_s,
        wake_s=report.wake_s,
        sleep_level=report.sleep_level,
        host_used_bytes=_bytes(report.host_used_mb),
        is_pinned=report.pinned,
        max_in_flight=report.max_in_flight,
        progress=progress,
        unservable_reason=None
        if servable is None or servable.ok
        else (servable.reason or "the neuron says that it takes no requests"),
        error=report.error,
        base=None if report.base is None else ModelId(report.base),
    )


def _reading(device: DeviceHealth) -> DeviceReading:
    busy = device.utilization_pct
    return DeviceReading(
        index=DeviceIndex(device.index),
        vram_used_bytes=_bytes(device.vram_used_mb),
        vram_free_bytes=_bytes(device.vram_free_mb),
        utilization_ratio=None if busy is None else busy / 100,
        temp_c=device.temp_c,
        condition=DeviceCondition.from_wire(device.condition),
        condition_reason=device.condition_reason,
        other_used_bytes=_bytes(device.other_mb),
        power_w=device.power_w,
        power_limit_w=device.power_limit_w,
        throttled=device.throttled,
    )


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else bytes_from_mib(mib)
