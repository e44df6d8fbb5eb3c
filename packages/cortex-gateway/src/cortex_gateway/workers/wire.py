"""What the control process and a worker say to each other: msgpack, one frame for many messages.

Moments are seconds of the monotonic clock, which all processes of a machine share.
"""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.errors import RequestError
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.queue import Ticket
from cortex_core.routing.route import Candidate, Refuse, RouteHints, Serve, Wait
from cortex_core.simulation.trace import Arrival
from cortex_gateway.proxy.access import Access
from cortex_gateway.settings import GatewaySettings
from cortex_gateway.workers.sums import Family


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """Anything that is said; either side knows whom it listens to."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """An error that a caller is to be told."""

    kind: str
    """Name of its class."""
    message: str
    param: str | None
    retry_after_s: float | None


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`Refuse`, with its error in words."""

    problem: Problem
    candidates: tuple[Candidate, ...]


class Served(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`Serve`."""

    serve: Serve


Told = Refusal | Served


# From a worker.


class Hello(Message, frozen=True, kw_only=True):
    """It has started."""


class Ask(Message, frozen=True, kw_only=True):
    """A request stands in line; one of `Granted` and `Denied` follows."""

    turn: int
    """The worker's own number of it."""
    model: ModelId
    ticket: Ticket
    hints: RouteHints
    deadline: float
    is_shown: bool
    """Whether its caller is shown what it waits for."""


class Take(Message, frozen=True, kw_only=True):
    """What was granted is known; the place that was kept is given back, and one counted."""

    turn: int


class Leave(Message, frozen=True, kw_only=True):
    """The request has gone, whatever became of its turn."""

    turn: int


class Places(Message, frozen=True, kw_only=True):
    """So many places with a replica are taken more."""

    replica: ReplicaId
    change: int


class Freed(Message, frozen=True, kw_only=True):
    """Who waits for a replica may look again."""

    replica: ReplicaId


class Filled(Message, frozen=True, kw_only=True):
    """A replica has said that it is full."""

    replica: ReplicaId
    places: int


class Demand(Message, frozen=True, kw_only=True):
    """A request waits for a model without being in line, or does no longer."""

    model: ModelId
    is_over: bool = False
    was_late: bool = False
    """Whether its time was up."""


class Doubt(Message, frozen=True, kw_only=True):
    """See `Store.doubt`."""

    replica: ReplicaId


class Failed(Message, frozen=True, kw_only=True):
    """See `Store.failed`."""

    replica: ReplicaId
    now: float


class Succeeded(Message, frozen=True, kw_only=True):
    """See `Store.succeeded`."""

    replica: ReplicaId


class Touch(Message, frozen=True, kw_only=True):
    """See `Store.touch`."""

    replica: ReplicaId
    now: float


class Refresh(Message, frozen=True, kw_only=True):
    """See `Store.refresh`."""

    node: NodeName


class Noted(Message, frozen=True, kw_only=True):
    """What has become of requests since it was said last."""

    counts: Mapping[ModelId, int]
    """How many there were; see `Store.count`."""
    counted_at: float
    took: Mapping[ModelId, list[float]]
    """See `Store.served`."""
    lines: int
    """How many `journal` has."""
    journal: bytes
    """Lines of the journal, as `records_of` reads them."""


class Traced(Message, frozen=True, kw_only=True):
    """A line of the trace."""

    arrival: Arrival


class Figures(Message, frozen=True, kw_only=True):
    """The answer to `Tell`."""

    number: int
    families: tuple[Family, ...]


FromWorker = (
    Hello
    | Ask
    | Take
    | Leave
    | Places
    | Freed
    | Filled
    | Demand
    | Doubt
    | Failed
    | Succeeded
    | Touch
    | Refresh
    | Noted
    | Traced
    | Figures
)


# From the control process.


class Inner(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The way to where the control process serves everything."""

    name: str
    """Of a socket in the abstract namespace."""
    token: str
    """By which a worker is known there."""


class Setup(Message, frozen=True, kw_only=True):
    """The configuration in force; comes first, and with every reload."""

    settings: GatewaySettings
    catalogue: Catalogue
    accesses: Mapping[NodeName, Access]
    inner: Inner


class Fleet(Message, frozen=True, kw_only=True):
    """The newest snapshot."""

    state: FleetState
    heard: int
    """How many changes of the worker's own are in it."""


class Beat(Message, frozen=True, kw_only=True):
    """A line for a caller that waits for its turn."""

    turn: int
    text: str
    is_load: bool


class Waits(Message, frozen=True, kw_only=True):
    """Why a request waits for its turn."""

    turn: int
    wait: Wait


class Granted(Message, frozen=True, kw_only=True):
    """The end of a turn; of one that is served, a place is kept until `Take` or `Leave`."""

    turn: int
    told: Told
    is_cold: bool
    load_s: float
    lease: int = 0
    """Places with the same replica that the worker has ahead from now, and need not ask for."""


class Recall(Message, frozen=True, kw_only=True):
    """Calls back all places with a replica that are leased and not in use."""

    replica: ReplicaId


class Denied(Message, frozen=True, kw_only=True):
    """The end of a turn that did not come."""

    turn: int
    problem: Problem


class Tell(Message, frozen=True, kw_only=True):
    """Asks for the figures, and for a sign of life."""

    number: int


class Drain(Message, frozen=True, kw_only=True):
    """Asks for the end; a second one for haste."""


FromControl = Setup | Fleet | Beat | Waits | Granted | Recall | Denied | Tell | Drain


def told_of(decision: Serve | Refuse) -> Told:
    """Return a decision as it is sent."""
    if isinstance(decision, Serve):
        return Served(serve=decision)
    return Refusal(problem=problem_of(decision.error), candidates=decision.candidates)


def decision_of(told: Told) -> Serve | Refuse:
    """Return a decision that was sent."""
    match told:
        case Served():
            return told.serve
        case Refusal():
            return Refuse(error=error_of(told.problem), candidates=told.candidates)


def problem_of(error: RequestError) -> Problem:
    """Return an error as it is sent."""
    return Problem(
        kind=type(error).__name__,
        message=error.message,
        param=error.param,
        retry_after_s=error.retry_after_s,
    )


def error_of(problem: Problem) -> RequestError:
    """Return an error that was sent: of the same kind, with the same words."""
    kind = _kinds(RequestError).get(problem.kind, RequestError)
    # Kinds differ in what they are made of, and all of them have become the same words.
    error = kind.__new__(kind, problem.message)
    error.message = problem.message
    error.param = problem.param
    error.retry_after_s = problem.retry_after_s
    return error


def _kinds(root: type[RequestError]) -> dict[str, type[RequestError]]:
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return found
