"""What becomes of the models on a node that an operator drains.

Nobody who uses a model shall wait for it: one that is in use is served elsewhere before it goes.
One that nobody uses goes at once, and comes back where there is room when somebody asks.
"""

from collections.abc import Collection

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import with_command, with_swap
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.place import Limits, find_room
from cortex_core.placement.policy import EvictionPolicy, Rates
from cortex_core.placement.steps import Hold, Load, Wake
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.wire.admin import Departure

IN_USE_S = 300.0
"""A model counts as in use for so long after its latest request: an agent's turns are seconds to
minutes apart."""


class Draining(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision is taken from."""

    catalogue: Catalogue
    policy: EvictionPolicy
    rates: Rates
    demanded: Collection[ModelId]
    """Models that requests wait for."""
    now: float
    """Monotonic seconds."""


def departures(state: FleetState, name: NodeName, case: Draining) -> tuple[Departure, ...]:
    """Return what becomes of each model on the node `name`, by id.

    Models that hold nothing there, such as those whose load failed, are left out. The biggest
    chooses its new home first.
    """
    node = state.nodes[name]
    found: list[Departure] = []
    replicas = [replica for replica in node.replicas.values() if is_there(replica)]
    for replica in sorted(replicas, key=lambda one: (-(one.vram_used_bytes or 0), one.id.model)):
        departure, state = _departure(state, node, replica, case)
        found.append(departure)
    return tuple(sorted(found, key=lambda departure: departure.model))


def is_there(replica: Replica) -> bool:
    """Whether the replica holds memory of its node, of a device or of the host."""
    return replica.holds_memory or replica.status is ReplicaStatus.SLEEPING


def _departure(
    state: FleetState, node: NodeState, replica: Replica, case: Draining
) -> tuple[Departure, FleetState]:
    """Return what becomes of one replica, and the fleet with what that takes elsewhere noted."""
    model = replica.id.model
    profile = case.catalogue.profiles.get(model)

    def stays(reason: str) -> tuple[Departure, FleetState]:
        return Departure(model=model, outcome="stays", reason=reason), state

    pinned = [one.id.model for one in node.with_adapters(replica) if _is_pinned(one, case)]
    if pinned:
        return stays("it is pinned there" if model in pinned else f"{pinned[0]} is pinned there")
    if replica.status is ReplicaStatus.UNKNOWN:
        return stays("its state there is not known")
    if replica.status is ReplicaStatus.FOLLOWING:
        return stays("its head is another node; drain that one, or unload it there")
    # Whoever uses an adapter uses its base.
    if not any(_is_in_use(state, one, case) for one in node.with_adapters(replica)):
        return Departure(model=model, outcome="unloaded", reason="nobody uses it now"), state
    other = _home(state, node, model)
    if other is not None:
        reason = f"it is in use, and served or loaded on {other} already"
        return Departure(model=model, outcome="moved", to=other, reason=reason), state
    if profile is None:
        return stays("it is in use, and not in the catalogue, so nobody can load it elsewhere")
    return _moved(state, node, model, case)


def _moved(
    state: FleetState, node: NodeState, model: ModelId, case: Draining
) -> tuple[Departure, FleetState]:
    closed = frozenset(other.name for other in state.nodes.values() if other.is_cordoned)
    barred = closed | {node.name}
    moment = Case(
        state=state, catalogue=case.catalogue, now=case.now, policy=case.policy, rates=case.rates
    )
    step = find_room(moment, model, Limits(barred=barred))
    base = case.catalogue.profiles[model].base
    to_base = None if base is None else _coming_home(state, node, base)
    if isinstance(step, Hold) and to_base is not None:
        reason = f"it is in use, and follows its base {base} to {to_base}"
        return Departure(model=model, outcome="moved", to=to_base, reason=reason), state
    if isinstance(step, Hold):
        reason = f"it is in use, and cannot be loaded elsewhere: {_why(step, barred)}"
        return Departure(model=model, outcome="stays", reason=reason), state
    victims: tuple[ModelId, ...] = ()
    if isinstance(step, Load | Wake):
        to = step.replica.node
        verb = "sleeps and fits" if isinstance(step, Wake) else "fits"
        reason = f"it is in use, and {verb} on {to}"
        state = with_command(state, step.replica, step.command)
    else:
        to, victims = step.swap.node, tuple(victim.model for victim in step.swap.replicas)
        reason = f"it is in use, and {', '.join(victims)} give way to it on {to}"
        state = with_swap(state, model, step.swap)
    return Departure(model=model, outcome="moved", to=to, reason=reason, victims=victims), state


def _is_pinned(replica: Replica, case: Draining) -> bool:
    profile = case.catalogue.profiles.get(replica.id.model)
    return replica.is_pinned or (profile is not None and replica.id.node in profile.pinned_on)


def _coming_home(state: FleetState, node: NodeState, model: ModelId) -> NodeName | None:
    """Return another node to which the model is about to come, or `None`."""
    told = [target.node for target in state.commands if target.model == model]
    swap = state.swaps.get(model)
    told += [] if swap is None else [swap.node]
    return next((name for name in told if name != node.name), _home(state, node, model))


def _is_in_use(state: FleetState, replica: Replica, case: Draining) -> bool:
    if replica.is_busy or replica.id.model in case.demanded:
        return True
    resident = state.resident(replica.id)
    # One that was only ever seen loaded has not been used by anybody.
    is_used = resident is not None and resident.used > resident.since
    return is_used and resident is not None and case.now - resident.used < IN_USE_S


def _home(state: FleetState, node: NodeState, model: ModelId) -> NodeName | None:
    """Return another node that serves the model, else one that loads it, or `None`."""
    others = [
        (other, replica)
        for other, replica in state.replicas_of(model)
        if other.name != node.name and other.takes_work
    ]
    for other, replica in others:
        if replica.is_servable:
            return other.name
    for other, replica in others:
        if replica.status in UNDER_WAY:
            return other.name
    return None


def _why(hold: Hold, barred: Collection[NodeName]) -> str:
    verdicts = [verdict for verdict in hold.verdicts if verdict.node not in barred]
    if not verdicts:
        return "there is no other node that takes models"
    return "; ".join(f"{verdict.node}: {verdict.reason}" for verdict in verdicts)
