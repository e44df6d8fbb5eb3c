"""What was decided, when and why: the records that an operator reads afterwards."""

import enum

import msgspec

from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.steps import Evict, Hold, Load, Recycle, Retire, Step, Wake, parting_of
from cortex_core.routing.route import Candidate, Decision, Refuse, Serve, Wait


class DecisionKind(enum.StrEnum):
    """What a decision was about."""

    ROUTE = "route"
    """A request was sent to a replica."""
    WAIT = "wait"
    """A request waits, for a load or for a place."""
    REFUSE = "refuse"
    """A request was turned away."""
    LOAD = "load"
    """A model is loaded."""
    EVICT = "evict"
    """Replicas give way to a model."""
    WAKE = "wake"
    """A model that sleeps is woken."""
    RETIRE = "retire"
    """A replica that nobody uses is unloaded."""
    RECYCLE = "recycle"
    """A node's engine processes are replaced."""
    HOLD = "hold"
    """Nothing can be done for a model now."""


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was considered."""

    node: NodeName
    rejected: str | None = None
    """Why not this one; `None` when it could have been."""
    score: float | None = None
    """In [0, 1]; higher is better."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision, as `GET /admin/decisions` shows it."""

    at: float
    """Epoch seconds."""
    kind: DecisionKind
    model: ModelId
    """Empty where it is about a whole node."""
    node: NodeName | None = None
    request_id: str | None = None
    reason: str = ""
    considered: tuple[Considered, ...] = ()
    victims: tuple[ModelId, ...] = ()
    """Who gives way."""
    took_s: float | None = None
    """What it cost, in a record that tells how it ended."""
    error: str | None = None
    """Why it did not come about, likewise."""


class DecisionsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /admin/decisions`."""

    decisions: tuple[Record, ...] = ()
    """The newest first."""


def record_of_request(decision: Decision, model: ModelId, request_id: str, at: float) -> Record:
    """Return the record of a decision about one request."""

    def told(
        kind: DecisionKind, reason: str, candidates: tuple[Candidate, ...], node: NodeName | None
    ) -> Record:
        return Record(
            at=at,
            kind=kind,
            model=model,
            node=node,
            request_id=request_id,
            reason=reason,
            considered=tuple(
                Considered(node=one.replica.node, rejected=one.rejected, score=one.score)
                for one in candidates
            ),
        )

    match decision:
        case Serve(replica=replica, reason=reason, candidates=candidates):
            return told(DecisionKind.ROUTE, reason, candidates, replica.node)
        case Wait(reason=reason, candidates=candidates):
            return told(DecisionKind.WAIT, reason, candidates, None)
        case Refuse(error=error, candidates=candidates):
            return told(DecisionKind.REFUSE, error.message, candidates, None)


def record_of_step(step: Step, at: float) -> Record:
    """Return the record of one step of a plan."""
    match step:
        case Load(replica=replica, command=command):
            devices = ", ".join(str(index) for index in command.devices) or "the neuron's choice"
            reason = f"it fits there (devices: {devices})"
            return Record(
                at=at, kind=DecisionKind.LOAD, model=replica.model, node=replica.node, reason=reason
            )
        case Evict(model=model, swap=swap):
            return Record(
                at=at,
                kind=DecisionKind.EVICT,
                model=model,
                node=swap.node,
                reason=f"room is made for it there: {parting_of(swap.victims)}",
                victims=tuple(victim.replica.model for victim in swap.victims),
            )
        case Wake(replica=replica):
            return Record(
                at=at,
                kind=DecisionKind.WAKE,
                model=replica.model,
                node=replica.node,
                reason="it sleeps there, and fits",
            )
        case Recycle(node=node, cycles=cycles):
            return Record(
                at=at,
                kind=DecisionKind.RECYCLE,
                model=ModelId(""),
                node=node,
                reason=f"{cycles} loads there ended in an unload",
            )
        case Retire(replica=replica):
            return Record(
                at=at,
                kind=DecisionKind.RETIRE,
                model=replica.model,
                node=replica.node,
                reason="nobody has used it for long",
            )
        case Hold(model=model, verdicts=verdicts):
            return Record(
                at=at,
                kind=DecisionKind.HOLD,
                model=model,
                reason="no node can take it now",
                considered=tuple(
                    Considered(node=one.node, rejected=one.reason) for one in verdicts
                ),
            )
