"""What nobody uses any more."""

import math
from collections.abc import Iterator

from cortex_core.catalogue import Profile
from cortex_core.fleet.state import NodeState
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.case import Case
from cortex_core.replica import Replica


def idle_replicas(case: Case) -> tuple[ReplicaId, ...]:
    """Return the replicas that nobody has used for as long as they may stay unused.

    Sleepers are among them, as they hold the host's memory. Of a model of which copies are kept,
    so many stay.
    """
    found: list[ReplicaId] = []
    going: dict[ModelId, int] = {}
    for node in _long_unused(case):
        for replica, profile, until in _ends(case, node):
            model = profile.id
            if until > case.now or model in case.wanted:
                continue
            left = len(case.copies(model) - {node.name}) - going.get(model, 0)
            if left < profile.replicas.min and replica.is_servable:
                continue
            going[model] = going.get(model, 0) + replica.is_servable
            found.append(replica.id)
    return tuple(found)


def next_idle_end(case: Case) -> float:
    """Return when to look again, in monotonic seconds; infinite when that is no matter of time.

    It is no later than the time at which the next replica will have been unused for long enough.
    """
    least_s = _least_s(case)
    if least_s is None:
        return math.inf
    ends = [node.first_used + least_s for node in case.state.nodes.values()]
    later = [end for end in ends if end > case.now]
    exact = [end for node in _long_unused(case) for _, _, end in _ends(case, node)]
    return min([*later, *(end for end in exact if end > case.now)], default=math.inf)


def _least_s(case: Case) -> float | None:
    """Return the shortest time after which anything goes, if anything does."""
    known = (case.policy.idle_unload_s, case.catalogue.least_idle_s)
    return min((idle_s for idle_s in known if idle_s is not None), default=None)


def _long_unused(case: Case) -> Iterator[NodeState]:
    """Yield the nodes on which something may have been unused for long enough."""
    least_s = _least_s(case)
    if least_s is None:
        return
    for node in case.state.nodes.values():
        # An upstream has no facts, and neither has a node of which nothing is known.
        if node.first_used + least_s <= case.now and node.takes_work and node.facts is not None:
            yield node


def _ends(case: Case, node: NodeState) -> Iterator[tuple[Replica, Profile, float]]:
    """Yield what may be unloaded for want of use on a node, and when, as it looks now."""
    for model, resident in node.residents.items():
        replica, profile = node.replicas.get(model), case.catalogue.profiles.get(model)
        if replica is None or profile is None or replica.id in case.state.unloads:
            continue
        if model in node.adapters or case.is_awaited(replica, node):
            continue  # its adapters go first, each in its own time
        idle_s = profile.idle_unload_s
        if idle_s is None:
            idle_s = case.policy.idle_unload_s
        is_pinned = replica.is_pinned or node.name in profile.pinned_on
        if idle_s is None or is_pinned or replica.is_busy or replica.id in case.state.commands:
            continue
        yield replica, profile, resident.used + idle_s
