"""What would become of a request for a model now, node by node and in words."""

import enum
import math

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.evict import Later, find_eviction
from cortex_core.placement.fit import Fit
from cortex_core.placement.place import UNDER_WAY, judge, make_room
from cortex_core.placement.policy import LOAD_BYTES_PER_S, EvictionPolicy, Rates
from cortex_core.placement.steps import Evict, Load
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.route import RouteHints, Serve, route


class Outcome(enum.StrEnum):
    """What becomes of a request."""

    SERVE = "serve"
    """It is answered at once."""
    COMING = "coming"
    """It waits for a load that is under way, or for room that is being made."""
    LOAD = "load"
    """The model is loaded into free memory."""
    EVICT = "evict"
    """Others give way, then it is loaded."""
    WAIT = "wait"
    """It waits until others may give way."""
    REFUSE = "refuse"


class NodeOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """What one node could do for it."""

    node: NodeName
    outcome: Outcome
    reason: str
    victims: tuple[ModelId, ...] = ()
    """Who would give way."""
    expected_s: float | None = None
    """Seconds until it could serve; `None` when nobody can say."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /admin/explain`."""

    model: ModelId
    outcome: Outcome
    node: NodeName | None = None
    """Where it would be served."""
    victims: tuple[ModelId, ...] = ()
    expected_s: float | None = None
    summary: str = ""
    """The same in one line."""
    nodes: tuple[NodeOutlook, ...] = ()
    """In the order of the fleet."""


class _Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked about, and what it is looked at with."""

    state: FleetState
    catalogue: Catalogue
    model: ModelId
    policy: EvictionPolicy
    rates: Rates
    now: float

    @property
    def profile(self) -> Profile | None:
        return self.catalogue.profiles.get(self.model)


def explain(
    state: FleetState,
    catalogue: Catalogue,
    model: ModelId,
    *,
    policy: EvictionPolicy,
    rates: Rates,
    now: float,
) -> Explanation:
    """Return what `route` and `plan` would make of a request for `model`, without doing it."""
    case = _Case(state=state, catalogue=catalogue, model=model, policy=policy, rates=rates, now=now)
    nodes = tuple(_outlook(case, node) for node in state.nodes.values())
    chosen = _chosen(case, nodes)
    if chosen is None and not state.is_heard:
        return Explanation(
            model=model,
            outcome=Outcome.WAIT,
            summary=f"{model} waits until the nodes have said what they have",
            nodes=nodes,
        )
    if chosen is None:
        return Explanation(
            model=model,
            outcome=Outcome.REFUSE,
            summary=f"{model} cannot be served now",
            nodes=nodes,
        )
    return Explanation(
        model=model,
        outcome=chosen.outcome,
        node=chosen.node,
        victims=chosen.victims,
        expected_s=chosen.expected_s,
        summary=f"{model} on {chosen.node}: {chosen.reason}",
        nodes=nodes,
    )


def _chosen(case: _Case, nodes: tuple[NodeOutlook, ...]) -> NodeOutlook | None:
    by_name = {outlook.node: outlook for outlook in nodes}
    hints = RouteHints(has_turn=True)
    decision = route(
        case.state, case.catalogue, case.model, hints=hints, in_flight={}, now=case.now
    )
    if isinstance(decision, Serve):
        return by_name[decision.replica.node]
    coming = next((outlook for outlook in nodes if outlook.outcome is Outcome.COMING), None)
    if coming is not None:
        return coming
    if case.profile is not None and case.state.is_heard:
        step = make_room(
            case.state,
            case.catalogue,
            case.model,
            case.now,
            policy=case.policy,
            rates=case.rates,
        )
        if isinstance(step, Load):
            return by_name[step.replica.node]
        if isinstance(step, Evict):
            return by_name[step.swap.node]
    return next((outlook for outlook in nodes if outlook.outcome is Outcome.WAIT), None)


def _outlook(case: _Case, node: NodeState) -> NodeOutlook:
    replica = node.replicas.get(case.model)
    if node.takes_work and replica is not None and replica.is_servable:
        return NodeOutlook(
            node=node.name, outcome=Outcome.SERVE, reason="it is loaded there", expected_s=0.0
        )
    coming = _coming(case.state, case.model, node, replica)
    if coming is not None:
        return coming
    profile = case.profile
    if profile is None:
        reason = "the catalogue does not have it, so it is not loaded for anybody"
        return NodeOutlook(node=node.name, outcome=Outcome.REFUSE, reason=reason)
    verdict = judge(case.state, case.catalogue, profile, node, case.now)
    if isinstance(verdict, Fit):
        load_s, how = _load_time(case.state, profile, node)
        reason = f"it fits, and a load takes {how}"
        return NodeOutlook(node=node.name, outcome=Outcome.LOAD, reason=reason, expected_s=load_s)
    if not verdict.lacks_room:
        return NodeOutlook(node=node.name, outcome=Outcome.REFUSE, reason=verdict.reason)
    return _crowded(case, profile, node, verdict.reason)


def _crowded(case: _Case, profile: Profile, node: NodeState, why: str) -> NodeOutlook:
    """Return the outlook on a node where others have the room."""
    found = find_eviction(
        case.state,
        case.catalogue,
        profile,
        node,
        policy=case.policy,
        rates=case.rates,
        now=case.now,
    )
    if found is None:
        reason = f"{why}; nobody there may give way"
        return NodeOutlook(node=node.name, outcome=Outcome.REFUSE, reason=reason)
    if isinstance(found, Later):
        until = f"in {found.at - case.now:.0f} s" if math.isfinite(found.at) else "later"
        reason = f"{why}; others there may give way {until}"
        return NodeOutlook(node=node.name, outcome=Outcome.WAIT, reason=reason)
    load_s, how = _load_time(case.state, profile, node)
    victims = tuple(victim.replica.model for victim in found.victims)
    return NodeOutlook(
        node=node.name,
        outcome=Outcome.EVICT,
        reason=f"{', '.join(victims)} would give way, and a load takes {how}",
        victims=victims,
        expected_s=load_s,
    )


def _coming(
    state: FleetState, model: ModelId, node: NodeState, replica: Replica | None
) -> NodeOutlook | None:
    """Return the outlook on a node where something is under way."""
    swap = state.swaps.get(model)
    is_sent = ReplicaId(node=node.name, model=model) in state.commands
    if not node.takes_work:
        return None
    if replica is not None and replica.status is ReplicaStatus.UNLOADING:
        reason = "it is being unloaded there, and may come back then"
        return NodeOutlook(node=node.name, outcome=Outcome.WAIT, reason=reason)
    if replica is not None and replica.status in UNDER_WAY:
        progress = replica.progress
        eta_s = None if progress is None else progress.eta_s
        stage = "" if progress is None else f", {progress.stage}"
        reason = f"it is {replica.status} there{stage}"
    elif swap is not None and swap.node == node.name:
        eta_s, reason = None, "room is being made for it there"
    elif is_sent:
        eta_s, reason = None, "it is about to be loaded there"
    elif replica is not None and replica.status is ReplicaStatus.UNKNOWN:
        eta_s, reason = None, "its state there is not known, and the node is asked again"
    else:
        return None
    return NodeOutlook(node=node.name, outcome=Outcome.COMING, reason=reason, expected_s=eta_s)


def _load_time(state: FleetState, profile: Profile, node: NodeState) -> tuple[float | None, str]:
    """Return the seconds that a load takes, and how that is said."""
    measured = node.load_times.get(profile.id)
    if measured is not None:
        return measured, f"{measured:.0f} s, as the last one did"
    if profile.vram_bytes is None:
        return None, "a time that nobody knows"
    guess = profile.vram_bytes / LOAD_BYTES_PER_S
    return guess, f"about {guess:.0f} s, by its size"
