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
from cortex_core.fleet.state import FleetState, LoadFailure, NodeHealth, NodeState
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.place import UNDER_WAY, is_coming, make_room
from cortex_core.placement.steps import Evict, Hold, Load
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus

COMING = UNDER_WAY | {ReplicaStatus.UNLOADING, ReplicaStatus.UNKNOWN}
"""Statuses that a report will change soon; a request waits for it."""


class RouteHints(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller and earlier attempts say about where a request may go."""

    excluded: frozenset[ReplicaId] = frozenset()
    """Replicas that were tried for this request already."""
    cold_ok: bool = True
    """False refuses at once instead of waiting for a load."""


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
    candidates: tuple[Candidate, ...]


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the request until the fleet changes; a load is under way or shall be planned."""

    model: ModelId
    reason: str
    progress: LoadProgress | None = None
    """Of the load, when its node reports it."""
    is_load: bool = True
    """Whether a load is what it waits for, rather than news of a node."""
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
) -> Decision:
    """Decide where a request for `model` goes.

    Args:
        state: the fleet snapshot.
        catalogue: the profiles, for models that are not loaded.
        model: as `resolve` returned it.
        hints: see `RouteHints`.
        in_flight: this gateway's own open requests by replica; a replica without an entry
            has none.
        now: monotonic seconds.
    """
    pairs = list(state.replicas_of(model))
    candidates = [_judge(state, node, replica, hints, now) for node, replica in pairs]
    usable = [pair for pair, seen in zip(pairs, candidates, strict=True) if not seen.rejected]
    if usable:
        scores = score(usable, in_flight)
        scored = tuple(
            msgspec.structs.replace(seen, score=scores.get(seen.replica)) for seen in candidates
        )
        chosen = pick(scores)
        node = state.nodes[chosen.node]
        endpoint = node.replicas[model].endpoint or node.endpoint
        return Serve(replica=chosen, endpoint=endpoint, candidates=scored)
    return _not_ready(state, catalogue, model, hints, now, pairs, tuple(candidates))


def score(
    replicas: list[tuple[NodeState, Replica]], in_flight: Mapping[ReplicaId, int]
) -> dict[ReplicaId, float]:
    """Score replicas by depth of work; the emptiest gets 1.

    A suspect node, or an ejected replica let through in want of others, scores below every
    sound one.
    """
    # The report is a little old and the own count blind for other gateways: the larger is
    # nearer to the truth. A queued request has its whole prefill ahead, so it counts double.
    depth = {
        replica.id: max(replica.in_flight, in_flight.get(replica.id, 0)) + 2 * replica.queued
        for _, replica in replicas
    }
    deepest = max(depth.values(), default=0)
    suspects = {r.id for node, r in replicas if node.health is NodeHealth.SUSPECT}
    scores = {}
    for replica, d in depth.items():
        relative = 1.0 - d / (deepest + 1)
        scores[replica] = relative / 2 if replica in suspects else 0.5 + relative / 2
    return scores


def pick(scores: Mapping[ReplicaId, float]) -> ReplicaId:
    """Return the replica with the highest score; the smallest id wins a tie.

    Raises:
        NoReplicaError: `scores` is empty.
    """
    if not scores:
        raise NoReplicaError("no replica passed the filters")
    return min(scores, key=lambda replica: (-scores[replica], replica))


def _judge(
    state: FleetState, node: NodeState, replica: Replica, hints: RouteHints, now: float
) -> Candidate:
    reason = None
    breaker = state.breakers.get(replica.id)
    if not node.is_reachable:
        reason = f"the node is {node.health}"
    elif node.is_draining:
        reason = "the node is draining"
    elif replica.status is not ReplicaStatus.LOADED:
        reason = f"it is {replica.status}"
    elif replica.unservable_reason is not None:
        reason = replica.unservable_reason
    elif replica.id in hints.excluded:
        reason = "it was tried for this request"
    elif breaker is not None and breaker.is_open(now) and _has_other(state, replica.id, now):
        reason = "it failed repeatedly and is left alone for a while"
    return Candidate(replica=replica.id, rejected=reason)


def _has_other(state: FleetState, replica: ReplicaId, now: float) -> bool:
    """Whether a sound replica of the same model is there; without one, ejection is ignored."""
    for node, other in state.replicas_of(replica.model):
        if other.id != replica and node.is_reachable and other.is_servable:
            breaker = state.breakers.get(other.id)
            if breaker is None or not breaker.is_open(now):
                return True
    return False


def _not_ready(
    state: FleetState,
    catalogue: Catalogue,
    model: ModelId,
    hints: RouteHints,
    now: float,
    pairs: list[tuple[NodeState, Replica]],
    candidates: tuple[Candidate, ...],
) -> Decision:
    wait = _under_way(state, model, pairs, hints)
    if wait is None and not state.is_heard:
        # A gateway that has just started must not turn away, or load anew, what a node has.
        wait = Wait(model=model, reason="the nodes are being asked what they have", is_load=False)
    if wait is None and is_coming(state, model):
        # Only the replicas that were tried already; the plan sees no need for another.
        tried = NoReplicaError(f"every replica of {model!r} failed to answer")
        return Refuse(error=tried, candidates=candidates)
    if wait is None:
        step = make_room(state, catalogue, model, now, avoid=hints.excluded)
        if isinstance(step, Hold) and step.retry_at is None:
            return Refuse(error=_refusal(state, model, step, pairs, now), candidates=candidates)
        wait = Wait(model=model, reason=_waiting_for(step))
    if not hints.cold_ok:
        cold = ModelLoadingError(f"{model!r} is not loaded: {wait.reason}")
        return Refuse(error=cold, candidates=candidates)
    return msgspec.structs.replace(wait, candidates=candidates)


def _under_way(
    state: FleetState, model: ModelId, pairs: list[tuple[NodeState, Replica]], hints: RouteHints
) -> Wait | None:
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
    for target in state.commands:
        if target.model == model and state.nodes[target.node].takes_work:
            return Wait(model=model, reason=f"it is being loaded on {target.node}")
    return None


def _waiting_for(step: Load | Evict | Hold) -> str:
    match step:
        case Load(replica=replica):
            return f"it is about to be loaded on {replica.node}"
        case Evict(swap=swap):
            return f"room is about to be made on {swap.node}"
        case Hold():
            return "it waits for its turn where others are just now"


def _refusal(
    state: FleetState,
    model: ModelId,
    hold: Hold,
    pairs: list[tuple[NodeState, Replica]],
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
