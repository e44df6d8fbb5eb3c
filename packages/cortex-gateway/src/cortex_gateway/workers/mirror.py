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
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait
from cortex_core.server.clock import Clock
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import ProxySettings
from cortex_gateway.proxy.hold import Beat as ShowBeat
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines, Turn
from cortex_gateway.workers import wire

Say = Callable[[wire.FromWorker], None]

OfTurn = wire.Beat | wire.Waits | wire.Granted | wire.Denied


class MirrorStore(FleetStore):
    """The fleet as the control process has pushed it.

    Args:
        say: says something to the control process.
        catalogue: in force.
        policy: in force.
    """

    def __init__(self, say: Say, catalogue: Catalogue, policy: EvictionPolicy) -> None:
        super().__init__(FleetState(), catalogue, policy)
        self._say = say
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

    def count(self, model: ModelId, now: float) -> None:
        """See `Store.count`."""
        self._say(wire.Count(model=model, now=now))

    def touch(self, replica: ReplicaId, now: float) -> None:
        """See `Store.touch`."""
        self._say(wire.Touch(replica=replica, now=now))

    def served(self, model: ModelId, request_s: float) -> None:
        """See `Store.served`."""
        self._say(wire.Took(model=model, request_s=request_s))

    def refresh(self, node: NodeName) -> None:
        """See `Store.refresh`."""
        self._say(wire.Refresh(node=node))

    def _change(self, message: wire.Doubt | wire.Failed | wire.Succeeded) -> None:
        self._changes += 1
        self._say(message)


class MirrorPlaces(InFlight):
    """Counts here, and has the control process count the same.

    Args:
        say: says something to the control process.
    """

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def fill(self, replica: ReplicaId, places: int) -> None:
        """See `InFlight.fill`."""
        self._say(wire.Filled(replica=replica, places=places))

    def _add(self, replica: ReplicaId, change: int) -> None:
        super()._add(replica, change)
        self._say(wire.Places(replica=replica, change=change))


class MirrorJournal(Journal):
    """Has the control process note what is decided.

    Args:
        clock: of the process.
        say: says something to the control process.
    """

    def __init__(self, clock: Clock, say: Say) -> None:
        super().__init__(clock, lambda kind: None)
        self._say = say

    def request(self, decision: Decision, model: ModelId, request_id: str) -> None:
        """See `Journal.request`."""
        told = wire.told_of(decision)
        self._say(wire.Decided(told=told, model=model, request_id=request_id))


class FarLines(Lines):
    """The lines of the control process: every turn is asked for there.

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
        self._turns: dict[int, asyncio.Queue[OfTurn]] = {}
        in_flight.on_free = lambda replica: say(wire.Freed(replica=replica))

    def take(self, message: OfTurn) -> None:
        """Take what the control process says of a turn; its request may have gone."""
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
    assert isinstance(decision, Serve | Refuse)
    return Turn(decision=decision, is_cold=granted.is_cold, load_s=granted.load_s)
