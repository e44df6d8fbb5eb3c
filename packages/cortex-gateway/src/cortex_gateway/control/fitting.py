"""Asking nodes whether a model would load there."""

import asyncio

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.errors import ConflictError, RequestError
from cortex_core.fleet.state import NodeState
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.place import load_request
from cortex_core.wire.fit import FleetFit, NodeFit
from cortex_core.wire.neuron import PeerRequest
from cortex_gateway.control.operations import Operations
from cortex_gateway.ports import Store

_USUAL_HARNESS = "vllm"


async def fit(
    store: Store, operations: Operations, model: ModelId, node: NodeName | None
) -> FleetFit:
    """Return what nodes say of a load; nothing is done.

    Args:
        store: the fleet and the catalogue.
        operations: sends to neurons.
        model: it need not be in the catalogue; then it is asked about without options.
        node: whom to ask; `None` is every neuron.

    Raises:
        RequestError: `node` cannot be asked.
    """
    if node is not None:
        operations.client(node)
    names = sorted(store.state.nodes) if node is None else (node,)
    answers = await asyncio.gather(*(_ask(store, operations, model, name) for name in names))
    found = tuple(answer for answer in answers if answer is not None)
    is_ok = any(one.report is not None and one.report.ok for one in found)
    return FleetFit(model=model, ok=is_ok, nodes=found)


async def _ask(
    store: Store, operations: Operations, model: ModelId, name: NodeName
) -> NodeFit | None:
    """Return what a node says; `None` when it is an upstream, which loads nothing."""
    try:
        client = operations.client(name)
    except ConflictError:
        return None
    except RequestError as error:
        return NodeFit(node=name, error=error.message)
    profile = store.catalogue.profiles.get(model)
    # An adapter fits where its base does.
    profile = store.catalogue.host(profile or _unknown(model, store.state.nodes[name]))
    request = msgspec.structs.replace(load_request(profile), peers=_peers(store, profile, name))
    try:
        return NodeFit(node=name, report=await operations.send(name, lambda: client.fit(request)))
    except RequestError as error:
        return NodeFit(node=name, error=error.message)


def _peers(store: Store, profile: Profile, name: NodeName) -> tuple[PeerRequest, ...] | None:
    """Return the other nodes of a copy that several hold together, as if `name` had its head."""
    others = [other for other in profile.nodes if other != name][: len(profile.nodes) - 1]
    nodes = store.state.nodes
    known = [nodes[other].endpoint for other in others if other in nodes]
    return tuple(PeerRequest(endpoint=endpoint) for endpoint in known) or None


def _unknown(model: ModelId, node: NodeState) -> Profile:
    harnesses = () if node.facts is None else node.facts.harnesses
    return Profile(id=model, harness=harnesses[0] if harnesses else _USUAL_HARNESS)
