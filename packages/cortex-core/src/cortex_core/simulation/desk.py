"""The simulated gateway's data path: requests queue, are routed, and go to a node."""

from collections import deque
from collections.abc import Callable
from functools import partial

from cortex_core.errors import OverloadedError, RequestError
from cortex_core.fleet.reducers import with_doubt, with_request_failure, with_request_success
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.choose import affinity_of
from cortex_core.routing.queue import BYTES_PER_TOKEN, FairQueue, Ticket, cost_of
from cortex_core.routing.resolve import resolve
from cortex_core.routing.retry import Failure, may_retry
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait, route
from cortex_core.simulation.engine import Work
from cortex_core.simulation.generate import Dice
from cortex_core.simulation.journal import Journal, Pending
from cortex_core.simulation.machines import QueueTable
from cortex_core.simulation.neuron import Neuron
from cortex_core.simulation.store import Store
from cortex_core.simulation.timeline import Timeline
from cortex_core.simulation.trace import Arrival

RAMP_S = 0.25
"""How often a queue looks again while a fresh replica fills, as a real gateway's does."""

RAMP_ENDS_S = 5.0
"""When it has filled: 8 x 2^10 requests are more than any replica runs together."""

_CODES = {
    Failure.CONNECT: "upstream_unreachable",
    Failure.CUT_BEFORE_ANSWER: "upstream_cut",
    Failure.CUT_MID_ANSWER: "upstream_cut",
    Failure.NOT_ADMITTED: "no_replica",
    Failure.ENGINE_DIED: "engine_error",
}


class _Lane:
    """Requests for one model that wait."""

    def __init__(self, settings: QueueTable) -> None:
        self.queue = FairQueue(
            max_depth=settings.max_waiting, max_per_caller=settings.max_waiting_per_caller
        )
        self.pendings: dict[str, Pending] = {}
        self.warm: list[Pending] = []
        """Those that have waited for no load so far, and more that are gone."""
        self.deadlines: deque[tuple[float, str]] = deque()
        self.waits_at = -1
        """Epoch in which it was decided that they wait."""
        self.is_full = False
        """Whether what is there takes no more at the moment."""
        self.has_alarm = False
        self.is_ramping = False


class Desk:
    """Takes requests to nodes.

    Args:
        store: the fleet.
        neurons: the machines.
        settings: of the queues.
        timeline: virtual time.
        journal: where it is noted what became of them.
        dice: where numbers come from.
        ask_node: has a node report at once.
    """

    def __init__(
        self,
        store: Store,
        neurons: dict[NodeName, Neuron],
        settings: QueueTable,
        timeline: Timeline,
        journal: Journal,
        dice: Dice,
        ask_node: Callable[[NodeName], None],
    ) -> None:
        self._store = store
        self._neurons = neurons
        self._settings = settings
        self._timeline = timeline
        self._journal = journal
        self._draw = dice.random
        self._ask_node = ask_node
        self._lanes: dict[ModelId, _Lane] = {}
        self._in_flight: dict[ReplicaId, int] = {}
        self._open = 0
        self._retries = 0

    def arrive(self, number: int, arrival: Arrival) -> None:
        """Take a request."""
        pending, now = Pending(number=number, arrival=arrival), self._timeline.now
        try:
            model = resolve(self._store.state, self._store.catalogue, arrival.model).model
            self._store.count(model, now)
            self._enter(model, pending)
        except RequestError as error:
            self._journal.refuse(pending, _code(error), now)

    def let_through(self) -> None:
        """Look after those whose model is there: nobody gives way before they had their turn."""
        for model in [*self._store.waiting]:
            if self._store.state.is_served(model):
                lane = self._lanes[model]
                lane.is_full = False
                self._pump(model, lane)

    def ask_again(self, known: frozenset[ModelId]) -> None:
        """Look after those whose model is not there.

        Args:
            known: models of which it is known that one waits for them; a plan asks the same as
                a route would.
        """
        for model in [*self._store.waiting]:
            if not self._store.state.is_served(model):
                lane = self._lanes[model]
                lane.is_full = False
                if model in known:
                    lane.waits_at = self._store.epoch
                self._pump(model, lane)

    def _enter(self, model: ModelId, pending: Pending) -> None:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = _Lane(self._settings)
        arrival, now = pending.arrival, self._timeline.now
        ticket = Ticket(
            id=str(pending.number),
            caller=arrival.caller,
            priority=arrival.priority,
            cost=cost_of(round(arrival.prompt_tokens * BYTES_PER_TOKEN)),
            entered_at=now,
        )
        lane.queue.enter(ticket)
        self._open += 1
        lane.pendings[ticket.id] = pending
        lane.warm.append(pending)
        lane.deadlines.append((arrival.at + self._settings.hold_s, ticket.id))
        if lane.is_full or not self._store.state.is_served(model):
            # The plan that comes at this very moment says whether it waits or is refused.
            pending.is_cold = not lane.is_full
            self._waits(model, lane)
        else:
            self._pump(model, lane)

    def _pump(self, model: ModelId, lane: _Lane) -> None:
        """Send out whoever is next, until nobody is or nobody may."""
        store = self._store
        while lane.queue:
            if lane.waits_at == store.epoch:
                self._wait(lane)
                break
            decision = self._decide(model, RouteHints())
            match decision:
                case Serve():
                    self._send_next(lane, decision)
                case Wait(is_full=True):
                    lane.is_full = True
                    self._ramp(model, lane)
                    break
                case Wait():
                    lane.waits_at = store.epoch
                    self._wait(lane)
                    break
                case Refuse(error=error):
                    self._refuse_all(lane, error)
        self._waits(model, lane)

    def _decide(self, model: ModelId, hints: RouteHints) -> Decision:
        return route(
            self._store.state,
            self._store.catalogue,
            model,
            hints=hints,
            in_flight=self._in_flight,
            now=self._timeline.now,
            draw=self._draw(),
        )

    def _wait(self, lane: _Lane) -> None:
        for pending in lane.warm:
            pending.is_cold = True
        lane.warm.clear()

    def _waits(self, model: ModelId, lane: _Lane) -> None:
        """Tell how many wait, and see to it that none does for too long."""
        self._store.wait_for(model, len(lane.queue))
        if lane.queue and not lane.has_alarm:
            lane.has_alarm = True
            self._timeline.at(lane.deadlines[0][0], partial(self._give_up, model, lane))
        elif not lane.queue:
            lane.deadlines.clear()

    def _give_up(self, model: ModelId, lane: _Lane) -> None:
        """Refuse who has waited for as long as one may."""
        lane.has_alarm = False
        now = self._timeline.now
        while lane.deadlines and lane.deadlines[0][0] <= now:
            _, ticket_id = lane.deadlines.popleft()
            if lane.queue.leave(ticket_id):
                self._open -= 1
                self._journal.refuse(lane.pendings.pop(ticket_id), "model_loading", now)
        self._waits(model, lane)

    def _refuse_all(self, lane: _Lane, error: RequestError) -> None:
        while (ticket := lane.queue.next()) is not None:
            self._open -= 1
            pending = lane.pendings.pop(ticket.id)
            self._journal.refuse(pending, _code(error), self._timeline.now)
        lane.warm.clear()

    def _ramp(self, model: ModelId, lane: _Lane) -> None:
        """Look again soon, if a fresh replica takes more then: its limit rises with time alone."""
        now = self._timeline.now
        if not lane.is_ramping and any(
            resident is not None and now - resident.since < RAMP_ENDS_S
            for resident in (
                node.residents.get(model) for node, _ in self._store.state.replicas_of(model)
            )
        ):
            lane.is_ramping = True
            self._timeline.at(now + RAMP_S, partial(self._rise, model, lane))

    def _rise(self, model: ModelId, lane: _Lane) -> None:
        lane.is_ramping = False
        self._free(model)

    def _free(self, model: ModelId) -> None:
        """Look after those who wait for a place at `model`."""
        lane = self._lanes[model]
        if lane.queue:
            lane.is_full = False
            self._pump(model, lane)

    def _send_next(self, lane: _Lane, serve: Serve) -> None:
        ticket = lane.queue.next()
        assert ticket is not None
        if not lane.queue:
            lane.warm.clear()
        pending = lane.pendings.pop(ticket.id)
        replica = serve.replica
        if len(serve.candidates) > 1 and pending.arrival.session is not None:
            # What it says of itself changes which replica it is, not whether there is one.
            hints = RouteHints(affinity=affinity_of(pending.arrival.session, b""))
            own = self._decide(replica.model, hints)
            assert isinstance(own, Serve)
            replica = own.replica
        self._send(pending, replica)

    def _send(self, pending: Pending, replica: ReplicaId) -> None:
        now = self._timeline.now
        pending.waited_s, pending.sent_at = now - pending.arrival.at, now
        self._store.touch(replica, now)
        self._in_flight[replica] = self._in_flight.get(replica, 0) + 1
        self._retries += pending.attempts > 0
        neuron = self._neurons[replica.node]
        work = Work(arrival=pending.arrival, answered=partial(self._answered, pending, replica))
        if not neuron.is_up:
            self._refused(pending, replica, Failure.CONNECT)
        elif not neuron.serve(replica.model, work):
            self._refused(pending, replica, Failure.NOT_ADMITTED)

    def _refused(self, pending: Pending, replica: ReplicaId, failure: Failure) -> None:
        self._retries -= pending.attempts > 0
        self._failed(pending, replica, failure)

    def _answered(self, pending: Pending, replica: ReplicaId, work: Work) -> None:
        self._retries -= pending.attempts > 0
        if work.is_cut:
            begun = work.first_at is not None and work.first_at <= self._timeline.now
            failure = Failure.CUT_MID_ANSWER if begun else Failure.CUT_BEFORE_ANSWER
            self._failed(pending, replica, failure)
            return
        self._open -= 1
        self._in_flight[replica] -= 1
        assert work.first_at is not None
        now = self._timeline.now
        self._store.touch(replica, now)
        self._store.served(replica.model, now - pending.sent_at)
        self._journal.serve(pending, work.first_at, now)
        if replica in self._store.state.breakers:
            self._store.note(partial(with_request_success, replica=replica))
        self._free(replica.model)

    def _failed(self, pending: Pending, replica: ReplicaId, failure: Failure) -> None:
        """Try a request again that failed, or end it."""
        now = self._timeline.now
        pending.attempts += 1
        may = may_retry(
            failure,
            attempts=pending.attempts,
            bytes_sent=failure is Failure.CUT_MID_ANSWER,
            retries=self._retries,
            in_flight=self._open,
        )
        self._in_flight[replica] -= 1
        self._store.update(partial(_blamed, replica=replica, failure=failure, now=now))
        self._ask_node(replica.node)
        pending.tried |= {replica}
        if may:
            self._retry(pending, replica.model, _CODES[failure])
        else:
            self._end(pending, _CODES[failure])

    def _retry(self, pending: Pending, model: ModelId, code: str) -> None:
        decision = self._decide(model, RouteHints(excluded=pending.tried, has_turn=True))
        match decision:
            case Serve(replica=replica):
                self._send(pending, replica)
            case Wait():
                self._open -= 1
                pending.is_cold = True
                try:
                    self._enter(model, pending)
                except OverloadedError as error:
                    self._journal.refuse(pending, _code(error), self._timeline.now)
            case Refuse():
                self._end(pending, code)

    def _end(self, pending: Pending, code: str) -> None:
        self._open -= 1
        self._journal.refuse(pending, code, self._timeline.now)


def _blamed(state: FleetState, *, replica: ReplicaId, failure: Failure, now: float) -> FleetState:
    if failure is not Failure.NOT_ADMITTED:
        state = with_request_failure(state, replica, now)
    is_gone = failure in (Failure.NOT_ADMITTED, Failure.CONNECT)
    return with_doubt(state, replica) if is_gone else state


def _code(error: RequestError) -> str:
    return error.code or error.openai_type
