"""Places that workers have ahead: never more than there are, and nobody overtakes who waits."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import from_endpoints, with_facts, with_report, with_request_failure
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.placement.policy import DEFAULT_POLICY
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.queue import Ticket
from cortex_core.routing.route import RouteHints, Serve
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.settings import ApiSettings, GatewaySettings, QueueSettings
from cortex_gateway.workers import wire
from cortex_gateway.workers.desk import Desk, Rooms
from cortex_gateway.workers.leases import MOST_AT_ONCE, Leases, lease_of
from cortex_gateway.workers.mirror import FarLines, MirrorPlaces, MirrorStore
from cortex_gateway.workers.notes import Notes
from tests.fakes.clock import FakeClock

MODEL = ModelId("some/model")
REPLICA = ReplicaId(node=NodeName("a"), model=MODEL)


@given(
    left=st.integers(0, 200),
    held=st.integers(0, 100),
    others=st.integers(0, 100),
    workers=st.integers(2, 8),
)
def test_a_lease_leaves_a_place_for_whoever_asks_next(
    left: int, held: int, others: int, workers: int
) -> None:
    """Ours: at most an even share for a worker, and never the last place."""
    lease = lease_of(left, held=held, taken=held + others, workers=workers)

    assert 0 <= lease <= MOST_AT_ONCE
    assert lease < left or lease == 0
    if lease:
        assert held + lease <= (left + held + others) // workers


def fleet() -> FleetState:
    """Return a fleet of one node that has had the model for long."""
    facts = NodeFacts(hostname="a", devices=(), harnesses=("simulated",))
    state = with_facts(from_endpoints({REPLICA.node: "http://a:1"}), REPLICA.node, facts)
    loaded = Replica(id=REPLICA, status=ReplicaStatus.LOADED)
    return with_report(state, REPLICA.node, NodeReport(replicas=(loaded,)), 0.0)


Said = TypeVar("Said")


class Pipe(Generic[Said]):
    """Frames that wait to be delivered: what is said in one turn of the loop is one, as with `Channel`."""

    def __init__(self) -> None:
        self._frames: deque[list[Said]] = deque()
        self._is_open = False

    def say(self, message: Said) -> None:
        """Say something."""
        if not self._is_open:
            self._is_open = True
            self._frames.append([])
            asyncio.get_running_loop().call_soon(self._close)
        self._frames[-1].append(message)

    def take(self) -> list[Said]:
        """Return the next frame; nothing if there is none."""
        return self._frames.popleft() if self._frames else []

    def _close(self) -> None:
        self._is_open = False


class Worker:
    """A worker, and the control process's side of it; what they say waits to be delivered."""

    def __init__(self, room: "Room", name: str) -> None:
        self.running: deque[asyncio.Event] = deque()
        """One per request that is with the replica, set when its answer is complete."""
        self.to_control: Pipe[wire.FromWorker] = Pipe()
        self.to_worker: Pipe[wire.FromControl] = Pipe()
        self.desk = Desk(room.rooms, room.leases, name, self.to_worker.say, room.tasks)
        self.places = MirrorPlaces(self.to_control.say)
        say = self.to_control.say
        store = MirrorStore(say, say, Notes(say), Catalogue(), DEFAULT_POLICY)
        store.show(wire.Fleet(state=room.store.state, heard=0))
        self.lines = FarLines(
            self.to_control.say,
            store=store,
            in_flight=self.places,
            settings=room.settings,
            clock=room.clock,
            random=lambda: 0.0,
        )

    def hear(self) -> bool:
        """Deliver a frame to the worker; return whether there was one."""
        frame = self.to_worker.take()
        for message in frame:
            match message:
                case wire.Recall():
                    self.places.recall(message.replica)
                case wire.Granted() | wire.Denied() | wire.Beat() | wire.Waits():
                    self.lines.take(message)
                case _:
                    raise AssertionError(message)
        return bool(frame)

    def tell(self) -> bool:
        """Deliver a frame to the control process; return whether there was one."""
        frame = self.to_control.take()
        for message in frame:
            self.desk.take(message)
        return bool(frame)


class Room:
    """A control process and its workers, without processes."""

    def __init__(self, places: int, workers: int, tasks: asyncio.TaskGroup) -> None:
        queue = QueueSettings(max_in_flight=places)
        self.settings = LiveSettings(GatewaySettings(gateway=ApiSettings(queue=queue)))
        self.clock = FakeClock(1e6)
        self.store = FleetStore(fleet(), Catalogue(), DEFAULT_POLICY)
        self.in_flight = InFlight()
        self.lines = Lines(
            store=self.store,
            in_flight=self.in_flight,
            settings=self.settings,
            clock=self.clock,
            random=lambda: 0.0,
        )
        self.tasks = tasks
        self.rooms = Rooms(
            store=self.store,
            lines=self.lines,
            in_flight=self.in_flight,
            journal=Journal(self.clock, lambda kind: None),
            trace=None,
            settings=self.settings,
            clock=self.clock,
        )
        self.leases = Leases(
            store=self.store,
            lines=self.lines,
            in_flight=self.in_flight,
            settings=self.settings,
            clock=self.clock,
            workers=workers,
        )
        self.workers = [Worker(self, str(number)) for number in range(workers)]
        self.begun: list[int] = []
        """Requests in the order in which they were sent to the replica."""
        self.asked = 0

    @property
    def with_replica(self) -> int:
        """How many requests are with the replica."""
        return sum(len(worker.running) for worker in self.workers)

    async def ask(self, worker: Worker) -> None:
        """Have a request come to a worker."""
        number, self.asked = self.asked, self.asked + 1
        self.tasks.create_task(self._request(worker, number))
        await turns()

    async def settle(self) -> None:
        """Deliver everything, and whatever is said to that."""
        while any(step() for one in self.workers for step in (one.hear, one.tell)):
            await turns()

    async def _request(self, worker: Worker, number: int) -> None:
        ticket = Ticket(id=str(number), caller="x", entered_at=float(number))
        turn = await worker.lines.turn(MODEL, ticket, RouteHints(), deadline=2e6, beat=None)
        assert isinstance(turn.decision, Serve)
        with worker.places.attempt(turn.decision.replica, is_retry=False):
            self.begun.append(number)
            end = asyncio.Event()
            worker.running.append(end)
            await end.wait()


async def turns() -> None:
    """Let every task go as far as it can: none waits for anything but another one."""
    for _ in range(12):
        await asyncio.sleep(0)


async def act(room: Room, what: int, worker: Worker) -> None:
    """Do one of the things that happen."""
    if what == 0:
        await room.ask(worker)
    elif what == 1 and worker.running:
        worker.running.popleft().set()
    elif what == 2:
        worker.hear()
    elif what == 3:
        worker.tell()
    elif what == 4:
        worker.places.tidy()
    elif what == 5:
        room.leases.recall()
    elif what == 6:
        for _ in range(8):
            await room.ask(worker)
            # What it has to say and is told goes fast.
            while worker.tell() or worker.hear():
                await turns()
    await turns()


async def finish(room: Room) -> None:
    """Have every request come to its end."""
    await room.settle()
    while room.with_replica:
        for worker in room.workers:
            if worker.running:
                worker.running.popleft().set()
        await turns()
        await room.settle()


WHAT = st.sampled_from([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6])
STEPS = st.lists(st.tuples(WHAT, st.integers(0, 1)), max_size=80)
PLACES = st.integers(1, 24)


@given(places=PLACES, steps=STEPS)
def test_no_replica_ever_gets_more_than_its_places(
    places: int, steps: list[tuple[int, int]]
) -> None:
    """Issue: bounds hold, however late processes hear of each other, and nothing leaks."""

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            room = Room(places, 2, tasks)
            for what, number in steps:
                await act(room, what, room.workers[number])
                assert room.with_replica <= places
            await finish(room)

            assert sorted(room.begun) == list(range(room.asked))
            room.leases.recall()
            await room.settle()
            assert dict(room.in_flight.replicas) == {}
            assert room.lines.waiting(MODEL) == 0

    asyncio.run(run())


@given(places=PLACES, steps=STEPS)
def test_a_line_is_served_in_the_order_in_which_it_formed(
    places: int, steps: list[tuple[int, int]]
) -> None:
    """Ours: as soon as it is known that somebody waits, nobody overtakes."""

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            room = Room(places, 2, tasks)
            for what, number in steps:
                await act(room, what, room.workers[number])
                await room.settle()
            await finish(room)

            assert room.begun == list(range(room.asked))

    asyncio.run(run())


@given(places=PLACES, steps=STEPS, dies=st.integers(0, 1))
def test_what_a_dead_worker_had_is_free_again(
    places: int, steps: list[tuple[int, int]], dies: int
) -> None:
    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            room = Room(places, 2, tasks)
            for what, number in steps:
                await act(room, what, room.workers[number])
            dead = room.workers.pop(dies)
            dead.desk.close()
            await turns()
            await finish(room)

            assert room.lines.waiting(MODEL) == 0
            room.leases.recall()
            await room.settle()
            assert dict(room.in_flight.replicas) == {}
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    asyncio.run(run())


async def have_lease(room: Room) -> Worker:
    """Return a worker with places ahead, none of which is in use."""
    worker = room.workers[0]
    await room.ask(worker)
    await room.settle()
    worker.running.popleft().set()
    await turns()
    await room.settle()
    assert worker.places.is_leased(REPLICA)
    return worker


async def test_a_leased_place_needs_no_question() -> None:
    async with asyncio.TaskGroup() as tasks:
        room = Room(64, 2, tasks)
        worker = await have_lease(room)

        await room.ask(worker)

        assert len(worker.running) == 1
        assert not any(isinstance(one, wire.Ask) for one in worker.to_control.take())
        await finish(room)


@pytest.mark.parametrize(
    "change",
    [
        lambda room: room.store.doubt(REPLICA),
        lambda room: room.store.forget(REPLICA.node),
        lambda room: room.store.update(
            lambda state: with_request_failure(state, replica=REPLICA, now=room.clock.now())
        ),
        lambda room: room.in_flight.fill(REPLICA, 64),
    ],
)
async def test_a_lease_ends_with_what_it_was_given_for(change: Callable[[Room], None]) -> None:
    """Ours: a replica that is doubted, gone, failing or too full is asked for each time."""
    async with asyncio.TaskGroup() as tasks:
        room = Room(64, 2, tasks)
        worker = await have_lease(room)

        change(room)
        room.leases.look()
        await room.settle()

        assert not worker.places.is_leased(REPLICA)
        assert dict(room.in_flight.replicas) == {}


async def test_places_that_are_not_used_go_back() -> None:
    async with asyncio.TaskGroup() as tasks:
        room = Room(64, 2, tasks)
        worker = await have_lease(room)

        worker.places.tidy()
        worker.places.tidy()
        await room.settle()

        assert not worker.places.is_leased(REPLICA)
        assert dict(room.in_flight.replicas) == {}
