"""What is known of the model behind a replica, in the terms of a translation."""

from cortex_core.dialect import Dialect
from cortex_core.fleet.state import FleetState
from cortex_core.harness import Limit
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.translate.target import Target
from cortex_gateway.proxy.access import NEURON, Access, Accesses

NO_LIMIT = Limit()


def target_of(state: FleetState, replica: ReplicaId, access: Access) -> Target:
    """Return what a request to `replica` is translated for."""
    node = state.nodes.get(replica.node)
    known = None if node is None else node.replicas.get(replica.model)
    return Target(
        model=access.models.get(replica.model, replica.model),
        capabilities=None if known is None else known.capabilities,
        limit=(None if known is None else known.limit) or NO_LIMIT,
        tells_usage=access.is_neuron,
    )


def foreseen_target(
    state: FleetState, model: ModelId, accesses: Accesses
) -> tuple[Target, Dialect]:
    """Return what a request for `model` will probably be translated for, before one is chosen.

    What at least one replica can do is not refused; a model that nobody has loaded yet can do
    everything.
    """
    access = NEURON
    for node, _ in state.replicas_of(model):
        if node.name in accesses:
            access = accesses[node.name]
            break
    told = state.told_of(model)
    target = Target(
        model=access.models.get(model, model),
        capabilities=told.capabilities,
        limit=told.limit or NO_LIMIT,
        tells_usage=access.is_neuron,
    )
    return target, access.dialect
