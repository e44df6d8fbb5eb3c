"""A worker's picture of what the control process has, and its way to say what it did.

The data path finds here what it finds in the control process, and uses it in the same way. Who
waits for a turn waits over there; what is noted here is said there in the same order.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.errors import ModelLoadingError
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.routing.queue import Ticket
from cortex_core.routing.record import DecisionKind, kind_of, record_of_request
from cortex_core.routing.route import Decision, RouteHints, Serve, Wait
from cortex_core.server.clock import Clock
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import ProxySettings
from cortex_gateway.proxy.hold import Beat as ShowBeat
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines, Turn
from cortex_gateway.workers import wire
from cortex_gateway.workers.notes import Notes

Say = Callable[[wire.FromWorker], None]

OfTurn = wire.Beat | wire.Waits | wire.Granted | wire.Denied


class MirrorStore(FleetStore):
    """The fleet as the control process has pushed it.

    Args:
        say: says something to the control process.
        note: says something that can wait a moment.
        notes: what is gathered about requests.
        catalogue: in force.
        policy: in force.
    """

    def __init__(
        self, say: Say, note: Say, notes: Notes, catalogue: Catalogue, policy: EvictionPolicy
    ) -> None:
        super().__init__(FleetState(), catalogue, policy)
        self._notes = notes
        self._say = say
        self._note = note
        self._changes = 0

    def show(self, fleet: wire.Fleet) -> None:
        """Take a snapshot, unless it lacks what was changed here; then another one follows."""
        if fleet.heard == self._changes:
            # Changes that were made here have counted on by themselves.
            revision = self.state.revision + 1
            state = msgspec.structs.replace(fleet.state, revision=revision)
            self.update(lambda before: state)

    def doubt(self, replica: ReplicaId) -> None:
        """See `Store.doubt`."""
        self._change(wire.Doubt(replica=replica))
        super().doubt(replica)

    def failed(self, replica: ReplicaId, now: float) -> None:
        """See `Store.failed`."""
        self._change(wire.Failed(replica=replica, now=now))
        super().failed(replica, now)

    def succeeded(self, replica: ReplicaId) -> None:
        """See `Store.succeeded`."""
        self._change(wire.Succeeded(replica=replica))
        super().succeeded(replica)

    @contextmanager
    def demand(self, model: ModelId) -> Iterator[None]:
        """See `Store.demand`."""
        was_late = False
        self._say(wire.Demand(model=model))
        try:
            yield
        except ModelLoadingError:
            was_late = True
            raise
        finally:
            self._say(wire.Demand(model=model, is_over=True, was_late=was_late))

    def count(self, model: ModelId, now: float, requests: int = 1) -> None:
        """See `Store.count`."""
        self._notes.count(model, now)

    def touch(self, replica: ReplicaId, now: float) -> None:
        """See `Store.touch`."""
        before = self.state
        super().touch(replica, now)
        if self.state is not before:
            self._note(wire.Touch(replica=replica, now=now))

    def served(self, model: ModelId, request_s: float) -> None:
        """See `Store.served`."""
        self._notes.took(model, request_s)

    def refresh(self, node: NodeName) -> None:
        """See `Store.refresh`."""
        self._say(wire.Refresh(node=node))

    def _change(self, message: wire.Doubt | wire.Failed | wire.Succeeded) -> None:
        self._changes += 1
        self._say(message)


class MirrorPlaces(InFlight):
    """Counts here, and has the control process count the same.

    What is leased is counted over there whether or not it is in use; said is only what goes beyond.

    Args:
        say: says something to the control process.
    """

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say
        self._leased: dict[ReplicaId, int] = {}
        self._unused: dict[ReplicaId, int] = {}
        """The fewest of the leased places that were free since `tidy` was called last."""

    def lease(self, replica: ReplicaId, places: int) -> None:
        """Take so many places more, which the control process has counted."""
        # What is in use without a lease is counted there too, and is of the lease from now.
        before = max(self._leased.get(replica, 0), self.replicas.get(replica, 0))
        self._leased[replica] = before + places

    def is_leased(self, replica: ReplicaId) -> bool:
        """Whether a leased place is free."""
        return self._free(replica) > 0

    def has_lease(self, model: ModelId) -> bool:
        """Whether places with any replica of a model are leased."""
        return any(replica.model == model for replica in self._leased)

    def recall(self, replica: ReplicaId) -> None:
        """Give back all leased places that are not in use."""
        self._return(replica, self._leased.get(replica, 0))
        # Others are in line for them.
        self._say(wire.Freed(replica=replica))

    def tidy(self) -> None:
        """Give back what was not used since this was called last."""
        for replica, places in tuple(self._unused.items()):
            self._return(replica, places)
        self._unused = {replica: self._free(replica) for replica in self._leased}

    def free(self, replica: ReplicaId) -> None:
        """Have the control process look who is next for a place that is its own again."""
        if not self._free(replica):
            self._say(wire.Freed(replica=replica))

    def fill(self, replica: ReplicaId, places: int) -> None:
        """See `InFlight.fill`."""
        self._say(wire.Filled(replica=replica, places=places))

    def _add(self, replica: ReplicaId, change: int) -> None:
        leased, used = self._leased.get(replica, 0), self.replicas.get(replica, 0)
        super()._add(replica, change)
        now_used = self.replicas.get(replica, 0)
        if leased:
            free = self._free(replica)
            self._unused[replica] = min(self._unused.get(replica, free), free)
        self._tell(replica, max(now_used, leased) - max(used, leased))

    def _return(self, replica: ReplicaId, places: int) -> None:
        leased, used = self._leased.get(replica, 0), self.replicas.get(replica, 0)
        left = leased - places
        self._tell(replica, max(used, left) - max(used, leased))
        if left > 0:
            self._leased[replica] = left
        else:
            self._leased.pop(replica, None)
            self._unused.pop(replica, None)

    def _tell(self, replica: ReplicaId, change: int) -> None:
        if change:
            self._say(wire.Places(replica=replica, change=change))

    def _free(self, replica: ReplicaId) -> int:
        return max(0, self._leased.get(replica, 0) - self.replicas.get(replica, 0))


class MirrorJournal(Journal):
    """Has the control process note what is decided.

    Args:
        clock: of the process.
        count: told the kind of every decision.
        notes: what is gathered about requests.
    """

    def __init__(self, clock: Clock, count: Callable[[DecisionKind], None], notes: Notes) -> None:
        super().__init__(clock, count)
        self._notes = notes

    def request(self, decision: Decision, model: ModelId, request_id: str) -> None:
        """See `Journal.request`."""
        at = self._clock.wall()
        if isinstance(decision, Serve):
            self._notes.served(at, model, request_id, decision)
        else:
            self._notes.record(record_of_request(decision, model, request_id, at))
        self._count(kind_of(decision))


class FarLines(Lines):
    """The lines of the control process: turns are asked for there, or were given ahead.

    A request that had its turn and failed decides by itself; no limit holds it back any more.

    Args:
        say: says something to the control process.
        store: the mirror.
        in_flight: the counts here.
        settings: the bounds.
        clock: monotonic seconds.
        random: draws from [0, 1).
    """

    def __init__(
        self,
        say: Say,
        *,
        store: MirrorStore,
        in_flight: MirrorPlaces,
        settings: ProxySettings,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        super().__init__(
            store=store, in_flight=in_flight, settings=settings, clock=clock, random=random
        )
        self._say = say
        self._numbers = itertools.count()
        self._places = in_flight
        self._turns: dict[int, asyncio.Queue[OfTurn]] = {}
        in_flight.on_free = in_flight.free

    def observe(self) -> None:
        """Take the counts of a snapshot that was just shown."""
        self._observe()

    def take(self, message: OfTurn) -> None:
        """Take what the control process says of a turn; its request may have gone."""
        if isinstance(message, wire.Granted) and message.lease:
            assert isinstance(message.told, wire.Served)
            self._places.lease(message.told.serve.replica, message.lease)
        turn = self._turns.get(message.turn)
        if turn is not None:
            turn.put_nowait(message)

    async def turn(
        self,
        model: ModelId,
        ticket: Ticket,
        hints: RouteHints,
        *,
        deadline: float,
        beat: ShowBeat | None,
        on_wait: Callable[[Wait], None] = lambda wait: None,
    ) -> Turn:
        """See `Lines.turn`."""
        if self._places.has_lease(model):
            # With a place that is leased it has its turn already.
            ahead = msgspec.structs.replace(hints, has_turn=True)
            decision = self.decide(model, ahead)
            if isinstance(decision, Serve) and self._places.is_leased(decision.replica):
                return Turn(decision=decision)
        return await self._asked(model, ticket, hints, deadline, beat, on_wait)

    async def _asked(
        self,
        model: ModelId,
        ticket: Ticket,
        hints: RouteHints,
        deadline: float,
        beat: ShowBeat | None,
        on_wait: Callable[[Wait], None],
    ) -> Turn:
        number = next(self._numbers)
        said = self._turns[number] = asyncio.Queue[OfTurn]()
        ask = wire.Ask(
            turn=number,
            model=model,
            ticket=ticket,
            hints=hints,
            deadline=deadline,
            is_shown=beat is not None,
        )
        self._say(ask)
        is_taken = False
        try:
            while True:
                message = await said.get()
                match message:
                    case wire.Beat():
                        if beat is not None:
                            await beat(message.text, message.is_load)
                    case wire.Waits():
                        on_wait(message.wait)
                    case wire.Denied():
                        raise wire.error_of(message.problem)
                    case wire.Granted():
                        is_taken = True
                        return _turn_of(message)
        finally:
            del self._turns[number]
            self._say(wire.Take(turn=number) if is_taken else wire.Leave(turn=number))


def _turn_of(granted: wire.Granted) -> Turn:
    decision = wire.decision_of(granted.told)
    return Turn(decision=decision, is_cold=granted.is_cold, load_s=granted.load_s)
