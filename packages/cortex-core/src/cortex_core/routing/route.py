"""The routing decision: serve here, wait, or refuse, and why."""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.errors import (
    ModelDoesNotFitError,
    ModelLoadFailedError,
    ModelLoadingError,
    NoReplicaError,
    RequestError,
)
from cortex_core.fleet.state import FleetState, LoadFailure, NodeState, Pairs
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.place import Limits, find_room, is_coming
from cortex_core.placement.policy import DEFAULT_POLICY, EvictionPolicy
from cortex_core.placement.steps import Evict, Hold, Load, Wake
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.routing.choose import DEFAULT_MAX_IN_FLIGHT, choose, places_left

_FULL = "it has as many requests as it is given at once"

COMING = UNDER_WAY | {ReplicaStatus.UNLOADING, ReplicaStatus.UNKNOWN}
"""Statuses that a report will change soon; a request waits for it."""


class RouteHints(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller and earlier attempts say about where a request may go."""

    excluded: frozenset[ReplicaId] = frozenset()
    """Replicas that were tried for this request already."""
    cold_ok: bool = True
    """False refuses at once instead of waiting for a load."""
    has_turn: bool = False
    """It has had its turn already, as when it was tried elsewhere: no limit holds it back."""
    affinity: bytes | None = None
    """What tells its conversation from others; see `affinity_of`."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One replica that was considered."""

    replica: ReplicaId
    rejected: str | None = None
    """Reason of the filter that dropped it; `None` when it was scored."""
    score: float | None = None
    """In [0, 1]; higher is better."""


class Serve(msgspec.Struct, frozen=True, kw_only=True):
    """Send the request to this replica."""

    replica: ReplicaId
    endpoint: str
    """Base URL that takes the request."""
    reason: str
    """Why this one of the candidates."""
    candidates: tuple[Candidate, ...]


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the request until the fleet changes; a load is under way or shall be planned."""

    model: ModelId
    reason: str
    progress: LoadProgress | None = None
    """Of the load, when its node reports it."""
    is_load: bool = True
    """Whether a load is what it waits for, rather than news of a node."""
    is_full: bool = False
    """Whether it waits for a place with a replica that is there."""
    candidates: tuple[Candidate, ...] = ()


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer with this error."""

    error: RequestError
    candidates: tuple[Candidate, ...] = ()


Decision = Serve | Wait | Refuse


def route(
    state: FleetState,
    catalogue: Catalogue,
    model: ModelId,
    *,
    hints: RouteHints,
    in_flight: Mapping[ReplicaId, int],
    now: float,
    draw: float = 0.0,
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
    policy: EvictionPolicy = DEFAULT_POLICY,
) -> Decision:
    """Decide where a request for `model` goes.

    Args:
        state: the fleet snapshot.
        catalogue: the profiles, for models that are not loaded.
        model: as `resolve` returned it.
        hints: see `RouteHints`.
        in_flight: requests with each replica, from every gateway; one without an entry has as
            many as its latest report says.
        now: monotonic seconds.
        draw: a random number in [0, 1), for the choice between equals.
        max_in_flight: requests that a replica is given at once where nobody says.
        policy: how room is made, for a model that is not there.
    """
    pairs = state.replicas_of(model)
    objections: dict[ReplicaId, str] = {}
    places: list[tuple[NodeState, Replica]] = []
    # One plain loop: it is on the path of every request, and there is mostly one replica.
    for pair in pairs:
        node, replica = pair
        objection = _objection(state, node, replica, hints, now)
        if objection is None and not hints.has_turn:
            left = places_left(
                catalogue, node, replica, in_flight=in_flight, default=max_in_flight, now=now
            )
            objection = None if left > 0 else _FULL
        if objection is None:
            places.append(pair)
        else:
            objections[replica.id] = objection
    if places:
        return _serve(pairs, objections, places, catalogue, hints, in_flight, max_in_flight, draw)
    candidates = _candidates(pairs, objections, {})
    if _FULL in objections.values():
        return _full(model, candidates)
    case = Case(state=state, catalogue=catalogue, policy=policy, now=now)
    return _not_ready(case, model, hints, pairs, candidates)


def _serve(
    pairs: Pairs,
    objections: Mapping[ReplicaId, str],
    places: list[tuple[NodeState, Replica]],
    catalogue: Catalogue,
    hints: RouteHints,
    in_flight: Mapping[ReplicaId, int],
    max_in_flight: int,
    draw: float,
) -> Serve:
    choice = choose(
        places,
        catalogue,
        in_flight=in_flight,
        affinity=hints.affinity,
        draw=draw,
        default=max_in_flight,
    )
    node, replica = choice.pair
    return Serve(
        replica=replica.id,
        endpoint=replica.endpoint or node.endpoint,
        reason=choice.reason,
        candidates=_candidates(pairs, objections, choice.scores),
    )


def _candidates(
    pairs: Pairs, objections: Mapping[ReplicaId, str], scores: Mapping[ReplicaId, float]
) -> tuple[Candidate, ...]:
    return tuple(
        [
            Candidate(
                replica=replica.id,
                rejected=objections.get(replica.id),
                score=scores.get(replica.id),
            )
            for _, replica in pairs
        ]
    )


def _full(model: ModelId, candidates: tuple[Candidate, ...]) -> Wait:
    where = ", ".join(seen.replica.node for seen in candidates if seen.rejected == _FULL)
    return Wait(
        model=model,
        reason=f"every place with it is taken on {where}",
        is_load=False,
        is_full=True,
        candidates=candidates,
    )


def _objection(
    state: FleetState, node: NodeState, replica: Replica, hints: RouteHints, now: float
) -> str | None:
    """Return why `replica` cannot be given the request, whether or not it has a place."""
    if not node.is_reachable:
        return f"the node is {node.health}"
    if node.is_draining:
        return "the node is draining"
    if replica.status is not ReplicaStatus.LOADED:
        return f"it is {replica.status}"
    if replica.unservable_reason is not None:
        return replica.unservable_reason
    if replica.id in hints.excluded:
        return "it was tried for this request"
    breaker = state.breakers.get(replica.id)
    if breaker is not None and breaker.is_open(now) and _has_other(state, replica.id, now):
        return "it failed repeatedly and is left alone for a while"
    return None


def _has_other(state: FleetState, replica: ReplicaId, now: float) -> bool:
    """Whether a sound replica of the same model is there; without one, ejection is ignored."""
    for node, other in state.replicas_of(replica.model):
        if other.id != replica and node.is_reachable and other.is_servable:
            breaker = state.breakers.get(other.id)
            if breaker is None or not breaker.is_open(now):
                return True
    return False


def _not_ready(
    case: Case,
    model: ModelId,
    hints: RouteHints,
    pairs: Pairs,
    candidates: tuple[Candidate, ...],
) -> Decision:
    found: Wait | RequestError | None = _under_way(case.state, model, pairs, hints)
    if found is None and not case.state.is_heard:
        # A gateway that has just started must not turn away, or load anew, what a node has.
        found = Wait(model=model, reason="the nodes are being asked what they have", is_load=False)
    if found is None:
        found = _absent(case, model, hints, pairs)
    if isinstance(found, Wait) and not hints.cold_ok:
        eta_s = None if found.progress is None else found.progress.eta_s
        found = ModelLoadingError(f"{model!r} is not loaded: {found.reason}", retry_after_s=eta_s)
    if isinstance(found, RequestError):
        return Refuse(error=found, candidates=candidates)
    return msgspec.structs.replace(found, candidates=candidates)


def _absent(case: Case, model: ModelId, hints: RouteHints, pairs: Pairs) -> Wait | RequestError:
    """Return what becomes of a request for a model that nobody serves or is about to."""
    if is_coming(case.state, model):
        # Only the replicas that were tried already; the plan sees no need for another.
        return NoReplicaError(f"every replica of {model!r} failed to answer")
    step = find_room(case, model, Limits(avoid=hints.excluded))
    if isinstance(step, Hold) and step.retry_at is None:
        return _refusal(case.state, model, step, pairs, case.now)
    base = _awaited_base(case, model, hints) if isinstance(step, Hold) else None
    return base or Wait(model=model, reason=_waiting_for(step, model))


def _awaited_base(case: Case, model: ModelId, hints: RouteHints) -> Wait | None:
    """Return the wait for the base of an adapter, if that is under way."""
    profile = case.catalogue.profiles.get(model)
    if profile is None or profile.base is None:
        return None
    pairs = case.state.replicas_of(profile.base)
    wait = _under_way(case.state, profile.base, pairs, hints)
    if wait is None:
        return None
    # It is about to be loaded itself, whatever its base waits for.
    reason = f"its base {profile.base}: {wait.reason}"
    return msgspec.structs.replace(wait, model=model, reason=reason, is_load=True)


def _under_way(state: FleetState, model: ModelId, pairs: Pairs, hints: RouteHints) -> Wait | None:
    """Return the wait for what is changing by itself, loads before anything else."""
    changing = [
        (node, replica)
        for node, replica in pairs
        if node.takes_work and replica.status in COMING and replica.id not in hints.excluded
    ]
    changing.sort(key=lambda pair: pair[1].status not in UNDER_WAY)
    for node, replica in changing:
        return Wait(
            model=model,
            reason=f"it is {replica.status} on {node.name}",
            progress=replica.progress,
            is_load=replica.status in UNDER_WAY,
        )
    swap = state.swaps.get(model)
    if swap is not None:
        return Wait(model=model, reason=f"room is being made on {swap.node}")
    for target, command in state.commands.items():
        if target.model == model and state.nodes[target.node].takes_work:
            verb = "woken" if command.is_wake else "loaded"
            return Wait(model=model, reason=f"it is being {verb} on {target.node}")
    return None


def _waiting_for(step: Load | Wake | Evict | Hold, model: ModelId) -> str:
    match step:
        case Wake(replica=replica):
            return f"{_named(replica.model, model)} is about to be woken on {replica.node}"
        case Load(replica=replica):
            return f"{_named(replica.model, model)} is about to be loaded on {replica.node}"
        case Evict(model=wanting, swap=swap):
            whose = "" if wanting == model else f" for its base {wanting}"
            return f"room is about to be made{whose} on {swap.node}"
        case Hold():
            return "it waits for its turn where others are just now"


def _named(moved: ModelId, model: ModelId) -> str:
    return "it" if moved == model else f"its base {moved}"


def _refusal(
    state: FleetState,
    model: ModelId,
    hold: Hold,
    pairs: Pairs,
    now: float,
) -> RequestError:
    if hold.is_permanent:
        return ModelDoesNotFitError(f"{model!r} fits on no node: {hold.why}")
    failure = _latest_failure(state, model)
    if failure is not None and now < failure.retry_at:
        return ModelLoadFailedError(
            f"{model!r} could not be loaded: {failure.reason}",
            retry_after_s=failure.retry_at - now,
        )
    if hold.verdicts:
        return NoReplicaError(f"no node can serve {model!r} now: {hold.why}")
    for node, replica in pairs:
        if node.is_reachable and replica.error is not None:
            return ModelLoadFailedError(f"{model!r} failed on {node.name}: {replica.error}")
    where = ", ".join(f"{node.name} ({replica.status}, {node.health})" for node, replica in pairs)
    return NoReplicaError(f"no node serves {model!r} now; it was seen on: {where or 'none'}")


def _latest_failure(state: FleetState, model: ModelId) -> LoadFailure | None:
    failures = [failure for target, failure in state.failures.items() if target.model == model]
    return max(failures, key=lambda failure: failure.retry_at, default=None)
