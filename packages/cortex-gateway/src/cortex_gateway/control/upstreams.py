"""Upstreams that are no neurons, as nodes that have what the settings say and report nothing."""

from collections.abc import Iterable

from cortex_core.fleet.reducers import with_node, with_report
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.harness import Limit
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.replica import Replica, ReplicaStatus
from cortex_gateway.settings import UpstreamEntry, UpstreamModel


def with_upstreams(state: FleetState, entries: Iterable[UpstreamEntry], now: float) -> FleetState:
    """Return the fleet with the upstreams as nodes that are up.

    Nobody asks them for reports: whether one answers shows with every request, and its breaker
    keeps requests away from one that does not.
    """
    for entry in entries:
        endpoint = entry.base_url.rstrip("/").removesuffix("/v1")
        state = with_node(state, NodeState(name=entry.name, endpoint=endpoint))
        replicas = tuple(
            Replica(
                id=ReplicaId(node=entry.name, model=ModelId(model)),
                status=ReplicaStatus.LOADED,
                limit=_limit(theirs),
            )
            for model, theirs in entry.models.items()
        )
        state = with_report(state, entry.name, NodeReport(replicas=replicas), now)
    return state


def _limit(theirs: str | UpstreamModel) -> Limit:
    if isinstance(theirs, str):
        return Limit()
    return Limit(context=theirs.context, output=theirs.output)
