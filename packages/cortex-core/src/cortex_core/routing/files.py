"""Which nodes are asked about the tokens of a model that none of them has loaded."""

from collections.abc import Container
from itertools import islice

from cortex_core.catalogue import Profile
from cortex_core.fleet.feasibility import is_feasible
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import NodeName

_ASKED = 3
"""Nodes that are asked at most: a load finds the files, or fetches them, if none has any."""


def nodes_with_files(
    state: FleetState, profile: Profile, strangers: Container[NodeName]
) -> tuple[NodeState, ...]:
    """Return the nodes that may have a model's files, the likeliest first.

    A node that has or had it goes before one that could have it, and that before the others.

    Args:
        state: the fleet.
        profile: of the model.
        strangers: upstreams that are no neurons.

    Returns:
        n >= 0 nodes that take work and have the harness, at most a few.
    """
    able = [
        node
        for node in state.nodes.values()
        if node.takes_work
        and node.name not in strangers
        and node.facts is not None
        and profile.harness in node.facts.harnesses
    ]
    able.sort(
        key=lambda node: (
            profile.id not in node.replicas,
            not is_feasible(profile, node),
            node.name,
        )
    )
    return tuple(islice(able, _ASKED))
