"""Who is on a node, since when, and when each was used."""

import math
from collections.abc import Mapping

import msgspec

from cortex_core.fleet.state import NodeState, Resident
from cortex_core.ids import ModelId
from cortex_core.replica import Replica, ReplicaStatus

_THERE = frozenset({ReplicaStatus.LOADED, ReplicaStatus.SLEEPING})


def residents_of(
    node: NodeState, replicas: Mapping[ModelId, Replica], now: float
) -> dict[ModelId, Resident]:
    """Return who is there, loaded or asleep, after a report of the node."""
    residents = {}
    for model, replica in replicas.items():
        if replica.status not in _THERE:
            continue
        known, before = node.residents.get(model), node.replicas.get(model)
        if known is None or before is None or _is_awake_again(before, replica):
            is_new = node.reported_at is not None
            residents[model] = Resident(since=now, used=now, is_new=is_new)
            continue
        if replica.is_busy:
            residents[model] = msgspec.structs.replace(known, used=now)
        elif replica.last_used not in {None, before.last_used}:
            used = max(known.used, min(now, _used_later(node, replicas, replica)))
            residents[model] = msgspec.structs.replace(known, used=used)
        else:
            residents[model] = known
    return residents


def _used_later(node: NodeState, replicas: Mapping[ModelId, Replica], replica: Replica) -> float:
    """Return when the next resident was used that the node says was used after `replica`.

    Uses are told late, and not always in their order; the order on the node's clock is right.
    Infinite without one.
    """
    last_used = replica.last_used or 0.0
    later = (model for model, one in replicas.items() if (one.last_used or 0.0) > last_used)
    known = (
        node.residents[model].used
        for model in later
        if model in node.residents
        # What is new itself in this report is used as late as now.
        and node.replicas[model].last_used == replicas[model].last_used
    )
    return min(known, default=math.inf)


def _is_awake_again(before: Replica, replica: Replica) -> bool:
    was_asleep = before.status is ReplicaStatus.SLEEPING
    return was_asleep and replica.status is ReplicaStatus.LOADED
