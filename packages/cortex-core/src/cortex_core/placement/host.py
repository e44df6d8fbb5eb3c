"""Whether a replica can sleep on its node: host memory is a budget too."""

from cortex_core.fleet.state import NodeState, Way
from cortex_core.placement.case import Case
from cortex_core.replica import Replica, ReplicaStatus


def can_sleep(node: NodeState, replica: Replica) -> bool:
    """Whether the replica could be put to sleep, room for it aside."""
    if node.sleep_budget_bytes is None or replica.id.model in node.sleepless:
        return False
    if replica.id.model in node.adapters:
        return False  # nothing sleeps under its adapters
    return replica.capabilities is not None and replica.capabilities.sleep


def sleepers(node: NodeState) -> list[Replica]:
    """Return the replicas that sleep on the node."""
    return [r for r in node.replicas.values() if r.status is ReplicaStatus.SLEEPING]


def host_free_bytes(case: Case, node: NodeState) -> int:
    """Return the host memory that nobody sleeps in or is about to, in bytes; 0 where nobody can."""
    if node.sleep_budget_bytes is None:
        return 0
    asleep = sum(host_bytes(case, node, replica) for replica in sleepers(node))
    used = max(asleep, node.sleep_used_bytes or 0)
    return max(0, node.sleep_budget_bytes - used - _promised(case, node))


def host_bytes(case: Case, node: NodeState, replica: Replica) -> int:
    """Return what a sleeper holds of the host's memory, in bytes.

    Where its node does not say, that is what it holds of devices when it is awake.
    """
    if replica.host_used_bytes is not None:
        return replica.host_used_bytes
    return 0 if replica.sleep_level == 2 else _size(case, node, replica)


def _promised(case: Case, node: NodeState) -> int:
    """Return what those are to have who were told to sleep and do not yet."""
    promised = 0
    for swap in case.state.swaps_at.get(node.name, ()):
        for victim in swap.victims:
            replica = node.replicas.get(victim.replica.model)
            if victim.way is not Way.SLEEP_1 or replica is None:
                continue
            if replica.status is not ReplicaStatus.SLEEPING:
                promised += _size(case, node, replica)
    return promised


def _size(case: Case, node: NodeState, replica: Replica) -> int:
    size = node.size_of(replica)
    profile = case.catalogue.profiles.get(replica.id.model)
    if size is None and profile is not None:
        size = profile.vram_bytes
    return size or 0
