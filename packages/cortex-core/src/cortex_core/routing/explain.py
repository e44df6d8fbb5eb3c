"""What would become of a request for a model now, node by node and in words."""

import enum
import math

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.sizes import estimated, sized
from cortex_core.fleet.state import FleetState, LoadCommand, NodeState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.evict import Later, find_eviction
from cortex_core.placement.fit import Fit
from cortex_core.placement.place import find_room, judge
from cortex_core.placement.policy import EvictionPolicy, Rates
from cortex_core.placement.steps import Evict, Load, NodeVerdict, Wake, parting_of
from cortex_core.placement.times import has_woken, load_s, measured_load_s, wake_s
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.route import RouteHints, Serve, route


class Outcome(enum.StrEnum):
    """What becomes of a request."""

    SERVE = "serve"
    """It is answered at once."""
    COMING = "coming"
    """It waits for a load that is under way, or for room that is being made."""
    WAKE = "wake"
    """It sleeps, and is woken."""
    LOAD = "load"
    """The model is loaded into free memory."""
    EVICT = "evict"
    """Others give way, asleep or unloaded; then it is loaded, or woken where it sleeps."""
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
    case = Case(state=state, catalogue=catalogue, policy=policy, rates=rates, now=now)
    profile = catalogue.profiles.get(model)
    nodes = tuple(
        _outlook(case, model, profile and sized(state, estimated(state, profile), node), node)
        for node in state.nodes.values()
    )
    chosen = _chosen(case, model, nodes)
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


def _chosen(case: Case, model: ModelId, nodes: tuple[NodeOutlook, ...]) -> NodeOutlook | None:
    by_name = {outlook.node: outlook for outlook in nodes}
    hints = RouteHints(has_turn=True)
    decision = route(
        case.state,
        case.catalogue,
        model,
        hints=hints,
        in_flight={},
        now=case.now,
        policy=case.policy,
    )
    if isinstance(decision, Serve):
        return by_name[decision.replica.node]
    coming = next((outlook for outlook in nodes if outlook.outcome is Outcome.COMING), None)
    if coming is not None:
        return coming
    if case.state.is_heard:
        step = find_room(case, model)
        if isinstance(step, Load | Wake):
            return by_name[step.replica.node]
        if isinstance(step, Evict):
            return by_name[step.swap.node]
    return next((outlook for outlook in nodes if outlook.outcome is Outcome.WAIT), None)


def _outlook(case: Case, model: ModelId, profile: Profile | None, node: NodeState) -> NodeOutlook:
    replica = node.replicas.get(model)
    if node.takes_work and replica is not None and replica.is_servable:
        return NodeOutlook(
            node=node.name, outcome=Outcome.SERVE, reason="it is loaded there", expected_s=0.0
        )
    coming = _coming(case, model, profile, node)
    if coming is not None:
        return coming
    if profile is None:
        reason = "the catalogue does not have it, so it is not loaded for anybody"
        return NodeOutlook(node=node.name, outcome=Outcome.REFUSE, reason=reason)
    verdict = judge(case, profile, node)
    if isinstance(verdict, NodeVerdict) and (verdict.is_for_base or verdict.retry_at == math.inf):
        return _without_base(case, profile, node)
    if isinstance(verdict, Fit):
        coming_s, how = _arrival(profile, node)
        is_wake = _sleeper(model, node) is not None
        return NodeOutlook(
            node=node.name,
            outcome=Outcome.WAKE if is_wake else Outcome.LOAD,
            reason=f"it sleeps there, and {how}" if is_wake else f"it fits, and {how}",
            expected_s=coming_s,
        )
    if verdict.retry_at is not None:
        # Somebody else was quicker, and callers are held until it is tried again.
        reason = f"{verdict.reason}; it is tried again in {verdict.retry_at - case.now:.0f} s"
        return NodeOutlook(node=node.name, outcome=Outcome.WAIT, reason=reason)
    if not verdict.lacks_room:
        return NodeOutlook(node=node.name, outcome=Outcome.REFUSE, reason=verdict.reason)
    return _crowded(case, profile, node, verdict.reason)


def _without_base(case: Case, adapter: Profile, node: NodeState) -> NodeOutlook:
    """Return the outlook on a node where the base of an adapter must come first, or go."""
    state, base = case.state, case.catalogue.host(adapter)
    here = sized(state, estimated(state, base), node)
    found = _outlook(case, base.id, here, node)
    if found.outcome is Outcome.SERVE:
        reason = f"its base {base.id} is about to give way there"
        return NodeOutlook(node=node.name, outcome=Outcome.WAIT, reason=reason)
    return msgspec.structs.replace(found, reason=f"its base {base.id}: {found.reason}")


def _crowded(case: Case, profile: Profile, node: NodeState, why: str) -> NodeOutlook:
    """Return the outlook on a node where others have the room."""
    found = find_eviction(case, profile, node)
    if found is None:
        reason = f"{why}; nobody there may give way"
        return NodeOutlook(node=node.name, outcome=Outcome.REFUSE, reason=reason)
    if isinstance(found, Later):
        until = f"in {found.at - case.now:.0f} s" if math.isfinite(found.at) else "later"
        reason = f"{why}; others there may give way {until}"
        return NodeOutlook(node=node.name, outcome=Outcome.WAIT, reason=reason)
    coming_s, how = _arrival(profile, node)
    return NodeOutlook(
        node=node.name,
        outcome=Outcome.EVICT,
        reason=f"others give way ({parting_of(found.victims)}), and {how}",
        victims=tuple(victim.replica.model for victim in found.victims),
        expected_s=coming_s,
    )


def _coming(
    case: Case, model: ModelId, profile: Profile | None, node: NodeState
) -> NodeOutlook | None:
    """Return the outlook on a node where something is under way."""
    replica = node.replicas.get(model)
    swap = case.state.swaps.get(model)
    sent = case.state.commands.get(ReplicaId(node=node.name, model=model))
    left_s = None if profile is None else _left_s(case, profile, node, sent)
    if not node.takes_work:
        return None
    if replica is not None and replica.status is ReplicaStatus.UNLOADING:
        reason = "it is being unloaded there, and may come back then"
        return NodeOutlook(node=node.name, outcome=Outcome.WAIT, reason=reason)
    if replica is not None and replica.status in UNDER_WAY:
        progress = replica.progress
        if progress is not None and progress.eta_s is not None:
            left_s = progress.eta_s
        stage = "" if progress is None else f", {progress.stage}"
        reason = f"it is {replica.status} there{stage}"
    elif swap is not None and swap.node == node.name:
        reason = "room is being made for it there"
    elif sent is not None:
        kind = "woken" if sent.is_wake else "loaded"
        reason = f"it is about to be {kind} there"
    elif replica is not None and replica.status is ReplicaStatus.UNKNOWN:
        left_s, reason = None, "its state there is not known, and the node is asked again"
    else:
        return None
    return NodeOutlook(node=node.name, outcome=Outcome.COMING, reason=reason, expected_s=left_s)


def _left_s(
    case: Case, profile: Profile, node: NodeState, sent: LoadCommand | None
) -> float | None:
    """Return the seconds that a load or a wake will still take, by what the last ones took.

    One that this gateway did not send is reckoned as if it began now.
    """
    replica = node.replicas.get(profile.id)
    is_wake = sent is not None and sent.is_wake
    known = wake_s(node, profile, replica) if is_wake else load_s(node, profile)
    if known is None or sent is None:
        return known
    return max(0.0, known - (case.now - sent.sent_at))


def _sleeper(model: ModelId, node: NodeState) -> Replica | None:
    """Return the replica when it sleeps."""
    replica = node.replicas.get(model)
    return replica if replica is not None and replica.status is ReplicaStatus.SLEEPING else None


def _arrival(profile: Profile, node: NodeState) -> tuple[float | None, str]:
    """Return the seconds that a load or a wake takes, and how that is said."""
    sleeper = _sleeper(profile.id, node)
    if sleeper is not None:
        kind, known = "a wake", wake_s(node, profile, sleeper, sleeper.sleep_level or 1)
        is_measured = has_woken(node, profile, sleeper)
    else:
        kind, known = "a load", load_s(node, profile)
        is_measured = measured_load_s(node, profile) is not None
    if known is None:
        return None, f"{kind} takes a time that nobody knows"
    if is_measured:
        return known, f"{kind} takes {known:.0f} s, as the last one did"
    return known, f"{kind} takes about {known:.0f} s, by its size"
