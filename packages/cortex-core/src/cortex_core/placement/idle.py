"""What nobody uses any more."""

from collections.abc import Iterable, Iterator

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState, NodeState, Resident
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.replica import Replica


def idle_replicas(
    state: FleetState,
    catalogue: Catalogue,
    wanted: Iterable[ModelId],
    policy: EvictionPolicy,
    now: float,
) -> tuple[ReplicaId, ...]:
    """Return the replicas that nobody has used for as long as they may stay unused."""
    needed = set(wanted)
    return tuple(
        replica
        for replica, until in idle_ends(state, catalogue, policy)
        if until <= now and replica.model not in needed
    )


def idle_ends(
    state: FleetState, catalogue: Catalogue, policy: EvictionPolicy
) -> list[tuple[ReplicaId, float]]:
    """Return when each replica that may be unloaded for want of use will be, as it looks now."""
    ends: list[tuple[ReplicaId, float]] = []
    for node, replica, resident in _residents(state):
        known = node.replicas.get(replica.model)
        profile = catalogue.profiles.get(replica.model)
        if node.facts is None:
            continue  # an upstream, or a node of which nothing is known
        if known is None or profile is None or replica in state.unloads:
            continue
        idle_s = policy.idle_unload_s if profile.idle_unload_s is None else profile.idle_unload_s
        is_pinned = replica.node in profile.pinned_on
        if idle_s is None or is_pinned or is_busy(known) or not node.takes_work:
            continue
        ends.append((replica, resident.used + idle_s))
    return ends


def is_busy(replica: Replica) -> bool:
    """Whether requests are with the replica."""
    return bool(replica.in_flight or replica.queued)


def _residents(state: FleetState) -> Iterator[tuple[NodeState, ReplicaId, Resident]]:
    for node in state.nodes.values():
        for model, resident in node.residents.items():
            yield node, ReplicaId(node=node.name, model=model), resident
