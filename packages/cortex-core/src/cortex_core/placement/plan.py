"""What to load for the models that callers wait for."""

from collections.abc import Iterable

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import with_command, with_swap
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.idle import idle_replicas
from cortex_core.placement.place import is_coming, make_room
from cortex_core.placement.policy import DEFAULT_POLICY, NO_RATES, EvictionPolicy, Rates
from cortex_core.placement.steps import Evict, Hold, Load, Retire, Step


def plan(
    state: FleetState,
    catalogue: Catalogue,
    demand: Iterable[ModelId],
    now: float,
    *,
    policy: EvictionPolicy = DEFAULT_POLICY,
    rates: Rates = NO_RATES,
) -> tuple[Step, ...]:
    """Return what to do for the models in `demand`, in their order, and with what nobody uses.

    A model that a reachable node serves or loads, for which a load is on its way, or for which
    room is being made, needs nothing, so planning again with the steps noted gives no step
    again. Nothing is planned before every node was asked once: a gateway that has just started
    adopts what runs.

    Args:
        state: the fleet snapshot.
        catalogue: the profiles.
        demand: models that callers wait for, the longest wait first.
        now: monotonic seconds.
        policy: how room is made.
        rates: requests per second by model.
    """
    if not state.is_heard:
        return ()
    wanted = tuple(dict.fromkeys(demand))
    steps: list[Step] = []
    awaited: frozenset[NodeName] = frozenset()
    for model in wanted:
        if is_coming(state, model) or model in state.swaps:
            continue
        step = make_room(state, catalogue, model, now, barred=awaited, policy=policy, rates=rates)
        if isinstance(step, Hold):
            # Else small models would take turns on the node for ever, and a big one none.
            awaited |= step.awaited
        # The next model of this very plan must see the memory as taken.
        if isinstance(step, Load):
            state = with_command(state, step.replica, step.command)
        elif isinstance(step, Evict):
            state = with_swap(state, step.model, step.swap)
        steps.append(step)
    idle = idle_replicas(state, catalogue, wanted, policy, now)
    return (*steps, *(Retire(replica=replica) for replica in idle))
