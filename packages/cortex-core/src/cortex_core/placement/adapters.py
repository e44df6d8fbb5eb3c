"""How many adapters an engine still takes, and which gives its place to another.

An adapter has no memory of its own: the engine of its base set aside what so many take when it was
loaded. What is short is places. Who gives way for one is decided as for memory: see `victims`.
"""

import math
from collections.abc import Iterator

from cortex_core.catalogue import Profile
from cortex_core.fleet.state import NodeState
from cortex_core.ids import ModelId
from cortex_core.placement.case import Case
from cortex_core.placement.victims import Candidate, adapter_candidates
from cortex_core.replica import ReplicaStatus


def places_left(case: Case, adapter: Profile, node: NodeState) -> int:
    """Return how many adapters more the base's engine on `node` takes; below 0 where it has too many.

    Places that somebody is to have are taken, and so are those of adapters that are on their way
    out.
    """
    assert adapter.base is not None
    taken = {replica.id.model for replica in node.adapters.get(adapter.base, ())}
    taken.update(_expected(case, adapter, node))
    taken.discard(adapter.id)
    return case.catalogue.profiles[adapter.base].adapter_places - len(taken)


def find_giving_way(
    case: Case, adapter: Profile, node: NodeState
) -> list[Candidate] | float | None:
    """Return which adapters give way so that there is a place for another one of their base.

    Returns:
        None of them when enough are on their way out already; the time at which one may give way
        when none may now, infinite when a change must come first; `None` when nobody will.
    """
    assert adapter.base is not None
    there = node.adapters.get(adapter.base, ())
    leaving = sum(
        one.status is ReplicaStatus.UNLOADING or one.id in case.state.unloads for one in there
    )
    need = 1 - places_left(case, adapter, node) - leaving
    if need <= 0:
        return []
    ready, next_at = adapter_candidates(case, adapter, node)
    if len(ready) >= need:
        return ready[:need]
    movable = sum(case.may_give_way(one, adapter, node) for one in there) - leaving
    is_hopeless = movable + len(list(_expected(case, adapter, node))) < need
    return None if is_hopeless else min(next_at, math.inf)


def _expected(case: Case, adapter: Profile, node: NodeState) -> Iterator[ModelId]:
    """Yield the adapters of the same base that are to have a place and have none yet."""
    state, profiles = case.state, case.catalogue.profiles
    told = [*state.commands_at.get(node.name, ())]
    told += [model for model, swap in state.swaps.items() if swap.node == node.name]
    for model in told:
        if model in profiles and profiles[model].base == adapter.base:
            yield model
