"""When a node's engine processes are replaced by new ones.

Loading and unloading leaves memory in pieces and processes grown; after so many times a node
begins anew. One node at a time, and only while nobody is missing it.
"""

from cortex_core.fleet.state import NodeState
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.steps import Recycle
from cortex_core.replica import Replica, ReplicaStatus

IN_USE_S = 60.0
"""For how long after its latest request a model counts as in use."""


def find_recycle(case: Case) -> Recycle | None:
    """Return the node whose engines are to be recycled now, of several the one with most cycles."""
    limit, state = case.policy.defrag_after_cycles, case.state
    if not limit or state.recycling is not None:
        return None
    due = [node for node in state.nodes.values() if (node.cycles or 0) >= limit]
    if not due or any(_is_away(node) for node in state.nodes.values()):
        return None
    ready = [node for node in due if _can_be_spared(case, node)]
    if not ready:
        return None
    node = min(ready, key=lambda node: (-(node.cycles or 0), node.name))
    return Recycle(node=node.name, cycles=node.cycles or 0)


def _is_away(node: NodeState) -> bool:
    """Whether a node is on its way out or back, perhaps because another gateway recycles it."""
    if not node.is_reachable or node.is_draining:
        return node.facts is not None
    is_reloading = any(r.status is ReplicaStatus.RELOADING for r in node.replicas.values())
    return node.is_recycling or is_reloading


def _can_be_spared(case: Case, node: NodeState) -> bool:
    state = case.state
    if not node.is_reachable or (node.recycle_after is not None and case.now < node.recycle_after):
        return False
    if node.name in state.commands_at or node.name in state.swaps_at:
        return False
    if any(replica.node == node.name for replica in state.unloads):
        return False
    return not any(_is_missed(case, node, replica) for replica in node.replicas.values())


def _is_missed(case: Case, node: NodeState, replica: Replica) -> bool:
    """Whether somebody would notice that the replica is gone for a while."""
    moving = UNDER_WAY | {ReplicaStatus.UNLOADING, ReplicaStatus.FOLLOWING}
    if replica.is_busy or replica.status in moving:
        return True
    resident = node.residents.get(replica.id.model)
    is_used = resident is not None and case.now - resident.used < IN_USE_S
    if not is_used and replica.id.model not in case.wanted:
        return False
    others = case.copies(replica.id.model) - {node.name}
    return not any(state_of.is_servable for state_of in _replicas(case, replica, others))


def _replicas(case: Case, replica: Replica, nodes: frozenset[str]) -> list[Replica]:
    found = case.state.replicas_of(replica.id.model)
    return [other for node, other in found if node.name in nodes]
