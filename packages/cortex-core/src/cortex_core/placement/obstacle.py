"""What keeps a node from loading or waking a model now: found quickly, said in words when asked."""

import enum
import math

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.feasibility import (
    infeasible_reason,
    is_able,
    is_feasible,
    unfit_reason,
)
from cortex_core.fleet.sizes import resized
from cortex_core.fleet.state import NodeState
from cortex_core.ids import DeviceIndex, NodeName, ReplicaId
from cortex_core.placement.adapters import places_left
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.fit import (
    Fit,
    cooling_down,
    find_fit,
    free_bytes,
    is_plain,
    needed_share,
)
from cortex_core.placement.steps import NodeVerdict
from cortex_core.replica import ReplicaStatus
from cortex_core.units import mib_from_bytes


class Obstacle(enum.Enum):
    """Why not here."""

    AVOIDED = enum.auto()
    BARRED = enum.auto()
    INFEASIBLE = enum.auto()
    UNREACHABLE = enum.auto()
    DRAINING = enum.auto()
    CORDONED = enum.auto()
    RECYCLING = enum.auto()
    POISONED = enum.auto()
    BROKEN = enum.auto()
    LOADED = enum.auto()
    UNLOADING = enum.auto()
    COMING = enum.auto()
    COOLING = enum.auto()
    PEER = enum.auto()
    NO_BASE = enum.auto()
    BASE_COMING = enum.auto()
    BASE_GOING = enum.auto()
    NO_ROOM = enum.auto()


_BY_STATUS = {
    ReplicaStatus.POISONED: Obstacle.POISONED,
    ReplicaStatus.LOADED: Obstacle.LOADED,
    ReplicaStatus.UNLOADING: Obstacle.UNLOADING,
    **dict.fromkeys(UNDER_WAY, Obstacle.COMING),
}

_NO_MATTER = frozenset({ReplicaStatus.FAILED, ReplicaStatus.FOLLOWING})
"""What another node of a copy may have of it already: an earlier part gives way to a new one."""

_GOING = frozenset({ReplicaStatus.UNLOADING, ReplicaStatus.UNKNOWN})
"""What a base may be of which the next report says where it is."""

_WORDS = {
    Obstacle.AVOIDED: "it was tried for this request",
    Obstacle.BARRED: "a request that has waited for longer gets the next room there",
    Obstacle.DRAINING: "the node is draining",
    Obstacle.CORDONED: "the node is cordoned: it takes no new models",
    Obstacle.RECYCLING: "its engines are being recycled",
    Obstacle.POISONED: "its device there is poisoned",
    Obstacle.UNLOADING: "it is being unloaded there",
    Obstacle.COMING: "it is on its way there already",
    Obstacle.NO_BASE: "its base is not there",
    Obstacle.BASE_COMING: "its base is on its way there",
    Obstacle.BASE_GOING: "its base is being unloaded there",
}


def glance(case: Case, profile: Profile, node: NodeState) -> Fit | Obstacle:
    """Return where on `node` the model would be loaded or woken now, or what keeps it from that.

    Args:
        case: the fleet at a moment.
        profile: with the size that it has there.
        node: any node of the fleet.
    """
    is_adapter = profile.base is not None
    if not is_feasible(_where(case, profile) if is_adapter else profile, node):
        return Obstacle.INFEASIBLE
    replica = node.replicas.get(profile.id)
    is_asleep = replica is not None and replica.status is ReplicaStatus.SLEEPING
    obstacle = _closed(case, node, is_asleep=is_asleep)
    if obstacle is None and replica is not None:
        obstacle = _BY_STATUS.get(replica.status)
        if replica.id in case.state.unloads:
            obstacle = obstacle or Obstacle.UNLOADING
    if obstacle is None:
        obstacle = _noted(case, profile, node)
    if obstacle is not None:
        return obstacle
    if is_adapter:
        return _on_base(case, profile, node)
    if any(isinstance(fit, str) for fit in peer_fits(case, profile).values()):
        return Obstacle.PEER
    only = replica.devices if replica is not None and is_asleep else ()
    if node.broken and _is_broken(profile, node, only):
        return Obstacle.BROKEN
    if is_plain(case.state, node) and node.widest_bytes < needed_share(profile, only):
        return Obstacle.NO_ROOM
    free = free_bytes(case.state, case.catalogue, node)
    return find_fit(profile, node, free, only) or Obstacle.NO_ROOM


def _where(case: Case, adapter: Profile) -> Profile:
    """Return an adapter with the only nodes where it or its base may be."""
    return msgspec.structs.replace(adapter, pinned_on=case.catalogue.host(adapter).pinned_on)


def _on_base(case: Case, adapter: Profile, node: NodeState) -> Fit | Obstacle:
    """Return the place of an adapter with its base on `node`, or what keeps it from one."""
    assert adapter.base is not None
    state, base = case.state, node.replicas.get(adapter.base)
    swap = state.swaps.get(adapter.base)
    is_told = adapter.base in state.commands_at.get(node.name, ())
    if is_told or (swap is not None and swap.node == node.name):
        return Obstacle.BASE_COMING
    if base is None:
        return Obstacle.NO_BASE
    if base.status in UNDER_WAY:
        return Obstacle.BASE_COMING
    if base.id in state.unloads or base.status in _GOING:
        return Obstacle.BASE_GOING
    if not base.is_servable:
        return Obstacle.NO_BASE
    left = places_left(case, adapter, node)
    return Fit(devices=base.devices, free_bytes=left) if left > 0 else Obstacle.NO_ROOM


def peer_fits(case: Case, profile: Profile) -> dict[NodeName, Fit | str]:
    """Return where the other nodes of a copy would hold their parts now, or why they cannot.

    Nobody gives way there: the head's room is made when all the others have theirs.

    Args:
        case: the fleet at a moment.
        profile: of one node's part; without `nodes` there are no others.
    """
    return {name: _peer_fit(case, profile, name) for name in profile.nodes[1:]}


def _peer_fit(case: Case, profile: Profile, name: NodeName) -> Fit | str:
    node = case.state.nodes.get(name)
    if node is None:
        return "it is not in the fleet"
    closed = _closed(case, node, is_asleep=False)
    if closed is not None:
        return _WORDS.get(closed, f"the node is {node.health}")
    here = resized(case.state, profile, node)
    replica = node.replicas.get(profile.id)
    if replica is not None and replica.status not in _NO_MATTER:
        return f"it has the model for itself, {replica.status.value}"
    unfit = unfit_reason(here, node)
    if unfit is None and node.broken and _is_broken(here, node, ()):
        unfit = _broken(node)
    if unfit is not None:
        return unfit
    fit = find_fit(here, node, free_bytes(case.state, case.catalogue, node))
    return fit or _no_room(case, here, node)


def _closed(case: Case, node: NodeState, *, is_asleep: bool) -> Obstacle | None:
    """Return why a node takes nothing now, whatever it is; it may wake what sleeps there."""
    if not node.is_reachable:
        return Obstacle.UNREACHABLE
    if node.is_draining:
        return Obstacle.DRAINING
    if node.is_cordoned and not is_asleep:
        return Obstacle.CORDONED
    is_recycling = node.is_recycling or case.state.recycling == node.name
    return Obstacle.RECYCLING if is_recycling else None


def _noted(case: Case, profile: Profile, node: NodeState) -> Obstacle | None:
    """Return why a node is not asked for this model now."""
    if profile.id in case.state.commands_at.get(node.name, ()):
        return Obstacle.COMING
    if not case.state.failures:
        return None
    target = ReplicaId(node=node.name, model=profile.id)
    return Obstacle.COOLING if cooling_down(case.state, target, case.now) else None


def _is_broken(profile: Profile, node: NodeState, only: tuple[DeviceIndex, ...]) -> bool:
    """Whether the devices that can be used are too few for the model."""
    if only:
        return not node.broken.isdisjoint(only)
    devices = node.facts.devices if node.facts is not None else ()
    able = sum(is_able(device, profile) and device.index not in node.broken for device in devices)
    return bool(devices) and able < profile.min_devices


def verdict_of(case: Case, profile: Profile, node: NodeState, obstacle: Obstacle) -> NodeVerdict:
    """Return the obstacle in words."""
    is_permanent, retry_at = False, None
    match obstacle:
        case Obstacle.INFEASIBLE:
            where = profile if profile.base is None else _where(case, profile)
            reason = infeasible_reason(where, node) or "it could never hold it"
            is_elsewhere = bool(where.pinned_on) and node.name not in where.pinned_on
            is_permanent = node.facts is not None or is_elsewhere
        case Obstacle.UNREACHABLE:
            reason = f"the node is {node.health}"
        case Obstacle.LOADED:
            why = node.replicas[profile.id].unservable_reason
            reason = f"it is loaded there and takes no requests: {why}" if why else "it is there"
        case Obstacle.COOLING:
            failure = case.state.failures[ReplicaId(node=node.name, model=profile.id)]
            reason = f"the last load failed: {failure.reason}"
            retry_at = failure.retry_at if failure.is_for_room else None
        case Obstacle.PEER:
            fits = peer_fits(case, profile)
            lacking = [f"{name}: {fit}" for name, fit in fits.items() if isinstance(fit, str)]
            reason = f"it needs {' and '.join(profile.nodes)} together; {'; '.join(lacking)}"
        case Obstacle.NO_ROOM:
            reason = _no_room(case, profile, node)
        case Obstacle.BROKEN:
            reason = _broken(node)
        case Obstacle.BASE_COMING | Obstacle.BASE_GOING:
            # A change must come first, and is sure to come.
            reason, retry_at = _WORDS[obstacle], math.inf
        case _:
            reason = _WORDS[obstacle]
    return NodeVerdict(
        node=node.name,
        reason=reason,
        is_permanent=is_permanent,
        lacks_room=obstacle is Obstacle.NO_ROOM,
        is_for_base=obstacle is Obstacle.NO_BASE,
        retry_at=retry_at,
    )


def _no_room(case: Case, profile: Profile, node: NodeState) -> str:
    if profile.base is not None:
        places = case.catalogue.profiles[profile.base].adapter_places
        return f"no place now: its base takes {places} adapter(s) there at once"
    free = free_bytes(case.state, case.catalogue, node).values()
    sizes = ", ".join(str(mib_from_bytes(size)) for size in free)
    return f"no room now: it takes {profile.vram_mb} MiB, free are {sizes} MiB"


def _broken(node: NodeState) -> str:
    words = []
    for index in sorted(node.broken):
        reading = node.readings[index]
        why = f": {reading.condition_reason}" if reading.condition_reason else ""
        words.append(f"device {index} is {reading.condition}{why}")
    return "; ".join(words)
