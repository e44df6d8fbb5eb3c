"""What was decided, when and why: the records that an operator reads afterwards."""

import enum

import msgspec

from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.steps import Evict, Hold, Load, Recycle, Retire, Step, Wake, parting_of
from cortex_core.routing.route import Decision, Refuse, Serve, Wait


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
    UNLOAD = "unload"
    """An operator had a replica unloaded."""
    SLEEP = "sleep"
    """An operator had a replica put to sleep."""
    PIN = "pin"
    """An operator had a model kept where it is."""
    UNPIN = "unpin"
    """An operator let go of a pin."""
    CORDON = "cordon"
    """An operator had a node take no new models."""
    UNCORDON = "uncordon"
    """An operator had a node take new models again."""
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
    by_operator: bool = False
    """Somebody asked for it by hand."""
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


def kind_of(decision: Decision) -> DecisionKind:
    """Return what a decision about a request is."""
    match decision:
        case Serve():
            return DecisionKind.ROUTE
        case Wait():
            return DecisionKind.WAIT
        case Refuse():
            return DecisionKind.REFUSE


def record_of_request(decision: Decision, model: ModelId, request_id: str, at: float) -> Record:
    """Return the record of a decision about one request."""
    return Record(
        at=at,
        kind=kind_of(decision),
        model=model,
        node=decision.replica.node if isinstance(decision, Serve) else None,
        request_id=request_id,
        reason=decision.error.message if isinstance(decision, Refuse) else decision.reason,
        considered=tuple(
            Considered(node=one.replica.node, rejected=one.rejected, score=one.score)
            for one in decision.candidates
        ),
    )


def record_of_command(kind: DecisionKind, target: ReplicaId, at: float) -> Record:
    """Return the record of what an operator does; the model is empty when it is a node's."""
    return Record(
        at=at,
        kind=kind,
        model=target.model,
        node=target.node,
        by_operator=True,
        reason="an operator asked",
    )


def record_of_step(step: Step, at: float, *, by_operator: bool = False) -> Record:
    """Return the record of one step of a plan, or of what an operator's load takes."""
    if isinstance(step, Hold):
        verdicts = step.verdicts
        return Record(
            at=at,
            kind=DecisionKind.HOLD,
            model=step.model,
            reason="no node can take it now",
            considered=tuple(Considered(node=one.node, rejected=one.reason) for one in verdicts),
        )
    kind, target, reason, victims = _done(step)
    return Record(
        at=at,
        kind=kind,
        model=target.model,
        node=target.node,
        by_operator=by_operator,
        reason=f"an operator asked; {reason}" if by_operator else reason,
        victims=victims,
    )


def _done(
    step: Load | Wake | Evict | Retire | Recycle,
) -> tuple[DecisionKind, ReplicaId, str, tuple[ModelId, ...]]:
    """Return what is done, where and why, and who gives way."""
    match step:
        case Load(replica=replica, command=command):
            devices = ", ".join(str(index) for index in command.devices) or "the neuron's choice"
            return DecisionKind.LOAD, replica, f"it fits there (devices: {devices})", ()
        case Wake(replica=replica):
            return DecisionKind.WAKE, replica, "it sleeps there, and fits", ()
        case Evict(model=model, swap=swap):
            target = ReplicaId(node=swap.node, model=model)
            reason = f"room is made for it there: {parting_of(swap.victims)}"
            victims = tuple(victim.model for victim in swap.replicas)
            return DecisionKind.EVICT, target, reason, victims
        case Retire(replica=replica):
            return DecisionKind.RETIRE, replica, "nobody has used it for long", ()
        case Recycle(node=node, cycles=cycles):
            target = ReplicaId(node=node, model=ModelId(""))
            return DecisionKind.RECYCLE, target, f"{cycles} loads there ended in an unload", ()
