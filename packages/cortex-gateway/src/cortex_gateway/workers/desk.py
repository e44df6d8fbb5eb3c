"""The control process's side of one worker: what it asks and notes, and what it leaves behind."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import msgspec

from cortex_core.errors import RequestError
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.routing.route import Serve
from cortex_core.server.clock import Clock
from cortex_core.simulation.trace import Arrival
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import ProxySettings
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines
from cortex_gateway.workers import wire
from cortex_gateway.workers.leases import Leases
from cortex_gateway.workers.notes import records_of


class Rooms(msgspec.Struct, frozen=True, kw_only=True):
    """What the control process has for its workers."""

    store: FleetStore
    lines: Lines
    in_flight: InFlight
    journal: Journal
    trace: Callable[[Arrival], None] | None
    settings: ProxySettings
    clock: Clock


class Desk:
    """Does for one worker what it cannot do by itself.

    Args:
        rooms: of the control process.
        leases: of all workers.
        name: of the worker; no other one has it at the same time.
        say: says something to the worker.
        tasks: where turns are waited for.
    """

    def __init__(
        self,
        rooms: Rooms,
        leases: Leases,
        name: str,
        say: Callable[[wire.FromControl], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.changes = 0
        """Changes of the fleet that the worker has made."""
        self._rooms = rooms
        self._leases = leases
        self._name = name
        self._say = say
        self._tasks = tasks
        self._turns: dict[int, asyncio.Task[None]] = {}
        self._kept: dict[int, ReplicaId] = {}
        """Places that are kept for turns which the worker has not taken."""
        self._places: Counter[ReplicaId] = Counter()
        self._demands: defaultdict[ModelId, list[AbstractContextManager[None]]]
        self._demands = defaultdict(list)

    def take(self, message: wire.FromWorker) -> None:
        """Do what a message says."""
        match message:
            case wire.Ask():
                task = self._tasks.create_task(self._answer(message))
                self._turns[message.turn] = task
            case wire.Take():
                self._give_back(message.turn)
            case wire.Leave():
                self._leave(message.turn)
            case wire.Demand():
                self._demand(message)
            case wire.Doubt() | wire.Failed() | wire.Succeeded():
                self._change(message)
            case wire.Places() | wire.Freed() | wire.Filled():
                self._place(message)
            case _:
                self.note(message)

    def note(self, message: wire.FromWorker) -> None:
        """Note what a worker has done."""
        rooms = self._rooms
        match message:
            case wire.Noted():
                self._noted(message)
            case wire.Touch():
                rooms.store.touch(message.replica, message.now)
            case wire.Refresh():
                rooms.store.refresh(message.node)
            case wire.Traced():
                if rooms.trace is not None:
                    rooms.trace(message.arrival)
            case _:
                pass

    def _noted(self, message: wire.Noted) -> None:
        store, journal = self._rooms.store, message.journal
        for model, requests in message.counts.items():
            store.count(model, message.counted_at, requests)
        for model, times in message.took.items():
            for request_s in times:
                store.served(model, request_s)
        if message.lines:
            self._rooms.journal.take(message.lines, partial(records_of, journal))

    def close(self) -> None:
        """Take back whatever the worker had: it is gone."""
        for task in self._turns.values():
            task.cancel()
        self._leases.forget(self._recall)
        in_flight = self._rooms.in_flight
        freed = set(self._kept.values()) | set(self._places)
        for turn in tuple(self._kept):
            self._give_back(turn)
        for replica, places in self._places.items():
            in_flight.change(replica, -places)
        self._places.clear()
        for demands in self._demands.values():
            for demand in demands:
                demand.__exit__(None, None, None)
        self._demands.clear()
        for replica in sorted(freed):
            in_flight.on_free(replica)

    async def _answer(self, ask: wire.Ask) -> None:
        turn = ask.turn

        async def beat(text: str, is_load: bool) -> None:
            self._say(wire.Beat(turn=turn, text=text, is_load=is_load))

        # Workers count by themselves, and lines tell requests apart by their tickets.
        ticket = msgspec.structs.replace(ask.ticket, id=f"{self._name}.{ask.ticket.id}")
        try:
            got = await self._rooms.lines.turn(
                ask.model,
                ticket,
                ask.hints,
                deadline=ask.deadline,
                beat=beat if ask.is_shown else None,
                on_wait=lambda wait: self._say(wire.Waits(turn=turn, wait=wait)),
            )
        except RequestError as error:
            self._say(wire.Denied(turn=turn, problem=wire.problem_of(error)))
            return
        finally:
            self._turns.pop(turn, None)
        decision, lease = got.decision, 0
        if isinstance(decision, Serve):
            self._rooms.in_flight.reserve(decision.replica)
            self._kept[turn] = decision.replica
            lease = self._lease(decision.replica)
        told = wire.told_of(decision)
        self._say(
            wire.Granted(turn=turn, told=told, is_cold=got.is_cold, load_s=got.load_s, lease=lease)
        )

    def _lease(self, replica: ReplicaId) -> int:
        """Give the worker places ahead, if there are enough."""
        places = self._leases.grant(replica, self._recall, self._places[replica])
        if places:
            self._count(replica, places)
        return places

    def _recall(self, replica: ReplicaId) -> None:
        self._say(wire.Recall(replica=replica))

    def _count(self, replica: ReplicaId, change: int) -> None:
        self._places[replica] += change
        if not self._places[replica]:
            del self._places[replica]
        self._rooms.in_flight.change(replica, change)

    def _give_back(self, turn: int) -> ReplicaId | None:
        """Release the place that is kept for a turn, if there is one."""
        replica = self._kept.pop(turn, None)
        if replica is not None:
            self._rooms.in_flight.release(replica)
        return replica

    def _leave(self, turn: int) -> None:
        task = self._turns.pop(turn, None)
        if task is not None:
            task.cancel()
        replica = self._give_back(turn)
        if replica is not None:
            self._rooms.in_flight.on_free(replica)

    def _place(self, message: wire.Places | wire.Freed | wire.Filled) -> None:
        in_flight = self._rooms.in_flight
        match message:
            case wire.Places():
                self._count(message.replica, message.change)
            case wire.Freed():
                in_flight.on_free(message.replica)
            case wire.Filled():
                in_flight.fill(message.replica, message.places)
                self._leases.recall([message.replica])

    def _demand(self, message: wire.Demand) -> None:
        demands = self._demands[message.model]
        if not message.is_over:
            demands.append(self._rooms.store.demand(message.model))
            demands[-1].__enter__()
            return
        demand = demands.pop()
        if not demands:
            del self._demands[message.model]
        demand.__exit__(None, None, None)
        if message.was_late:
            self._rooms.store.want(message.model)

    def _change(self, message: wire.Doubt | wire.Failed | wire.Succeeded) -> None:
        self.changes += 1
        match message:
            case wire.Doubt():
                self._rooms.store.doubt(message.replica)
            case wire.Failed():
                self._rooms.store.failed(message.replica, message.now)
            case wire.Succeeded():
                self._rooms.store.succeeded(message.replica)
