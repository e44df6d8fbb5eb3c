"""The fleet as an operator sees it: `GET /admin/fleet`, and what `cortex status` shows."""

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.fleet.feasibility import infeasible_reason
from cortex_core.fleet.sizes import estimated, sized
from cortex_core.fleet.state import FleetState, LoadFailure, NodeHealth, NodeState
from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.wire.neuron import Activation


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """A device and its latest reading; `None` is not known."""

    index: DeviceIndex
    name: str = ""
    """Empty when discovery has not told of it yet."""
    vram_total_bytes: int | None = None
    vram_used_bytes: int | None = None
    vram_free_bytes: int | None = None
    utilization_ratio: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    throttled: tuple[str, ...] | None = None
    """Why its clocks are held down; empty when they are not."""
    other_used_bytes: int | None = None
    """What of the memory in use no model there accounts for."""
    condition: str = DeviceCondition.UNKNOWN.value
    """As in `DeviceCondition`."""
    condition_reason: str | None = None


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the node under which it is listed."""

    id: ModelId
    status: str
    """As in `ReplicaStatus`; `unknown` on a node that cannot be reached."""
    servable: bool = False
    """Whether a request may be sent to it."""
    devices: tuple[DeviceIndex, ...] = ()
    vram_used_bytes: int | None = None
    in_flight: int = 0
    queued: int = 0
    progress: LoadProgress | None = None
    error: str | None = None
    """Why it failed, or why it takes no requests."""
    sleep_level: int | None = None
    """While it sleeps: 1 keeps the weights in host memory, 2 drops them."""
    host_used_bytes: int | None = None
    """Host memory that it holds while it sleeps."""
    pinned: bool = False
    """Whether it stays there, by the catalogue or by an operator's word."""
    base: ModelId | None = None
    """Model on whose engine it is, where it is an adapter."""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node with its devices and models, the devices by index and the models by id."""

    name: NodeName
    endpoint: str
    health: str
    """As in `NodeHealth`."""
    last_error: str | None = None
    """Why the last contact failed; `None` after a good one."""
    version: str | None = None
    hostname: str | None = None
    devices: tuple[DeviceView, ...] = ()
    models: tuple[ReplicaView, ...] = ()
    cuda_unavailable_reason: str | None = None
    activation: Activation | None = None
    draining: bool = False
    cordoned: bool = False
    """Nothing new is loaded there."""
    sleep_budget_bytes: int | None = None
    """Host memory that sleeping models may hold; `None` where nothing can sleep."""
    sleep_used_bytes: int | None = None


class UnloadedView(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue that is on no node."""

    id: ModelId
    harness: str
    feasible_on: tuple[NodeName, ...] = ()
    """Nodes that could ever hold it, by name."""
    vram_bytes: int | None = None
    """The catalogue's estimate."""
    reason: str | None = None
    """Why its last load failed, else why no node could ever hold it."""
    base: ModelId | None = None
    """Model whose engine it needs, where it is an adapter; then the nodes are that one's."""


class FleetOverview(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of the gateway's `GET /admin/fleet`."""

    status: str
    """`ok` when every node is up and none drains, else `degraded`; a fleet without nodes is
    degraded. Stricter than `/health`, which counts a node that missed one beat as healthy."""
    revision: int = 0
    """Of the snapshot; grows with every change."""
    nodes: tuple[NodeView, ...] = ()
    """By name."""
    unloaded: tuple[UnloadedView, ...] = ()
    """By id."""

    @property
    def is_degraded(self) -> bool:
        """Whether an operator should look."""
        return self.status != "ok"


def fleet_overview(state: FleetState, catalogue: Catalogue) -> FleetOverview:
    """Return everything that an operator wants to know of a snapshot."""
    nodes = sorted(state.nodes.values(), key=lambda node: node.name)
    is_well = bool(nodes) and all(
        node.health is NodeHealth.UP and not node.is_draining for node in nodes
    )
    placed = {model for node in nodes for model in node.replicas}
    return FleetOverview(
        status="ok" if is_well else "degraded",
        revision=state.revision,
        nodes=tuple(_node_view(node, catalogue) for node in nodes),
        unloaded=tuple(
            _unloaded_view(state, profile, catalogue.host(profile))
            for model, profile in sorted(catalogue.profiles.items())
            if model not in placed
        ),
    )


def _node_view(node: NodeState, catalogue: Catalogue) -> NodeView:
    facts = node.facts
    known = {device.index: device for device in facts.devices} if facts else {}
    indexes = sorted(known.keys() | node.readings.keys())
    return NodeView(
        name=node.name,
        endpoint=node.endpoint,
        health=node.health.value,
        last_error=node.last_error,
        version=facts.version if facts else None,
        hostname=facts.hostname if facts else None,
        devices=tuple(
            _device_view(index, known.get(index), node.readings.get(index)) for index in indexes
        ),
        models=tuple(
            _replica_view(node, replica, catalogue.profiles.get(replica.id.model))
            for _, replica in sorted(node.replicas.items())
        ),
        cuda_unavailable_reason=facts.cuda_unavailable_reason if facts else None,
        activation=node.activation,
        draining=node.is_draining,
        cordoned=node.is_cordoned,
        sleep_budget_bytes=node.sleep_budget_bytes,
        sleep_used_bytes=node.sleep_used_bytes,
    )


def _device_view(
    index: DeviceIndex, device: Device | None, reading: DeviceReading | None
) -> DeviceView:
    now = reading or DeviceReading(index=index)
    return DeviceView(
        index=index,
        name=device.name if device else "",
        # 0 is what discovery puts where the driver gave no size.
        vram_total_bytes=(device.vram_total_bytes or None) if device else None,
        vram_used_bytes=now.vram_used_bytes,
        vram_free_bytes=now.vram_free_bytes,
        utilization_ratio=now.utilization_ratio,
        temp_c=now.temp_c,
        power_w=now.power_w,
        power_limit_w=now.power_limit_w,
        throttled=now.throttled,
        other_used_bytes=now.other_used_bytes,
        condition=now.condition.value,
        condition_reason=now.condition_reason,
    )


def _replica_view(node: NodeState, replica: Replica, profile: Profile | None) -> ReplicaView:
    is_reachable = node.is_reachable
    is_pinned = profile is not None and node.name in profile.pinned_on
    status = replica.status if is_reachable else ReplicaStatus.UNKNOWN
    return ReplicaView(
        id=replica.id.model,
        status=status.value,
        servable=is_reachable and replica.is_servable,
        devices=replica.devices,
        vram_used_bytes=replica.vram_used_bytes,
        in_flight=replica.in_flight,
        queued=replica.queued,
        progress=replica.progress if is_reachable else None,
        error=replica.error if replica.error is not None else replica.unservable_reason,
        sleep_level=replica.sleep_level,
        host_used_bytes=replica.host_used_bytes,
        pinned=replica.is_pinned or is_pinned,
        base=replica.base,
    )


def _unloaded_view(state: FleetState, profile: Profile, host: Profile) -> UnloadedView:
    known = estimated(state, host)
    verdicts = {
        name: infeasible_reason(sized(state, known, node), node)
        for name, node in sorted(state.nodes.items())
    }
    feasible = tuple(name for name, reason in verdicts.items() if reason is None)
    failed = _last_failure(state, profile.id)
    if failed is not None:
        node, failure = failed
        reason = f"the last load on {node} failed: {failure.reason}"
    elif not feasible:
        reason = "; ".join(f"{name}: {why}" for name, why in verdicts.items()) or "no nodes"
    else:
        reason = None
    return UnloadedView(
        id=profile.id,
        harness=profile.harness,
        feasible_on=feasible,
        vram_bytes=profile.vram_bytes,
        reason=reason,
        base=profile.base,
    )


def _last_failure(state: FleetState, model: ModelId) -> tuple[NodeName, LoadFailure] | None:
    """Return the failure that will be retried last, which is the newest as far as is known."""
    failed = [
        (failure.retry_at, target.node, failure)
        for target, failure in state.failures.items()
        if target.model == model
    ]
    if not failed:
        return None
    _, node, failure = max(failed, key=lambda entry: (entry[0], entry[1]))
    return node, failure
