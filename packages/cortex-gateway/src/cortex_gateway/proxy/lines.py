"""Requests in line for their models: who is next, and where to.

A request whose model has a place for it goes straight through. All others wait in one fair queue
per model, whatever they wait for: a load, or a place. With every change of the fleet, and with
every place that comes free, the one that is next is let through; a place is counted as taken
before its request is told, so that two of them never count on the same one.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from cortex_core.errors import ModelLoadingError, OverloadedError, RequestError
from cortex_core.fleet.rates import Rate, counted, per_second
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.explain import explain
from cortex_core.routing.queue import FairQueue, Ticket, retry_after_s
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait, route
from cortex_core.server.clock import Clock
from cortex_gateway.ports import ProxySettings, Store
from cortex_gateway.proxy.hold import FIRST_HEARTBEAT_S, Beat, describe, too_late
from cortex_gateway.proxy.inflight import InFlight

TICK_S = 0.25
"""How often lines are looked at though nothing has changed: ramps and cool-downs end by time."""

DRAIN_MEMORY_S = 30.0
"""How far back the rate reaches at which a line empties."""


class Place:
    """One request in a line.

    Args:
        ticket: whose it is and what it costs.
        hints: for its own choice of a replica.
    """

    def __init__(self, ticket: Ticket, hints: RouteHints) -> None:
        self.ticket = ticket
        self.hints = hints
        self.granted: asyncio.Future[Serve | None] = asyncio.get_running_loop().create_future()
        """Where to go; `None` says that it has to ask anew, and leave."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a wait in line."""

    decision: Serve | Refuse
    is_cold: bool = False
    """Whether a load was waited for."""
    load_s: float = 0.0
    """For how long."""


class Line:
    """Who waits for one model."""

    def __init__(self, queue: FairQueue, wait: Wait) -> None:
        self.queue = queue
        self.wait = wait
        """The latest reason."""
        self.places: dict[str, Place] = {}
        self.loading_until = -math.inf
        """Monotonic seconds of the latest look at which a load was the reason."""

    def note(self, wait: Wait, now: float) -> None:
        """Take the reason that was found just now."""
        self.wait = wait
        if wait.is_load:
            self.loading_until = now


class Lines:
    """All lines of this gateway.

    Args:
        store: the fleet.
        in_flight: the counts of places.
        settings: the bounds.
        clock: monotonic seconds.
        random: draws from [0, 1).
    """

    def __init__(
        self,
        *,
        store: Store,
        in_flight: InFlight,
        settings: ProxySettings,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._store = store
        self._in_flight = in_flight
        self._settings = settings
        self._clock = clock
        self._random = random
        self._lines: dict[ModelId, Line] = {}
        self._drains: dict[ModelId, Rate] = {}
        self._reported: dict[NodeName, float | None] = {}
        in_flight.on_free = self._freed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let requests through for as long as the context is open."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._run(), name="lines")
            try:
                yield
            finally:
                task.cancel()

    def waiting(self, model: ModelId) -> int:
        """Return how many requests wait for `model`."""
        line = self._lines.get(model)
        return 0 if line is None else len(line.queue)

    def decide(self, model: ModelId, hints: RouteHints) -> Decision:
        """Decide from the newest snapshot, without regard to who else waits."""
        return route(
            self._store.state,
            self._store.catalogue,
            model,
            hints=msgspec.structs.replace(hints, draw=self._random()),
            in_flight=self._in_flight.depths,
            now=self._clock.now(),
            max_in_flight=self._settings.max_in_flight,
            policy=self._store.policy,
        )

    async def turn(
        self,
        model: ModelId,
        ticket: Ticket,
        hints: RouteHints,
        *,
        deadline: float,
        beat: Beat | None,
        on_wait: Callable[[Wait], None] = lambda wait: None,
    ) -> Turn:
        """Wait for the turn of a request. The caller must count the attempt before it awaits.

        Args:
            model: what is asked for.
            ticket: who asks.
            hints: for the choice of a replica.
            deadline: by the clock.
            beat: called while it waits, after `FIRST_HEARTBEAT_S` and then every `heartbeat_s`;
                `None` waits silently.
            on_wait: told why it waits, if it does.

        Raises:
            OverloadedError: the line is full, or its turn did not come in time.
            ModelLoadingError: the model did not come in time, or the caller waits for no load.
        """
        line = self._lines.get(model)
        while True:
            if line is None or not line.queue:
                decision = self.decide(model, hints)
                if not isinstance(decision, Wait):
                    return Turn(decision=decision)
                line = self._open(model, decision)
            on_wait(line.wait)
            turn = await self._stand(line, model, ticket, hints, deadline, beat)
            if turn is not None:
                return turn
            line = self._lines.get(model)

    async def _stand(
        self,
        line: Line,
        model: ModelId,
        ticket: Ticket,
        hints: RouteHints,
        deadline: float,
        beat: Beat | None,
    ) -> Turn | None:
        """Wait in a line; `None` when there is no reason to any more."""
        place = Place(ticket, hints)
        self._enter(line, model, place)
        with self._store.demand(model):
            try:
                serve = await self._granted(line, model, place, deadline, beat)
            finally:
                self._leave(line, model, place)
        began = ticket.entered_at
        is_cold = line.loading_until >= began
        if serve is not None:
            load_s = line.loading_until - began if is_cold else 0.0
            return Turn(decision=serve, is_cold=is_cold, load_s=load_s)
        decision = self.decide(model, hints)
        return None if isinstance(decision, Wait) else Turn(decision=decision, is_cold=is_cold)

    async def _granted(
        self, line: Line, model: ModelId, place: Place, deadline: float, beat: Beat | None
    ) -> Serve | None:
        beat_at = math.inf
        if beat is not None:
            first_s = min(FIRST_HEARTBEAT_S, self._settings.heartbeat_s)
            beat_at = self._clock.now() + first_s
        while not place.granted.done():
            now = self._clock.now()
            if now >= deadline:
                raise self._missed(line, model)
            if beat is not None and now >= beat_at:
                await beat(describe(line.wait), line.wait.is_load)
                beat_at = now + self._settings.heartbeat_s
                continue
            await asyncio.wait((place.granted,), timeout=min(deadline, beat_at) - now)
        return place.granted.result()

    def _open(self, model: ModelId, wait: Wait) -> Line:
        line = self._lines.get(model)
        if line is None:
            queue = FairQueue(
                max_depth=self._settings.max_waiting,
                max_per_caller=self._settings.max_waiting_per_caller,
            )
            line = self._lines[model] = Line(queue, wait)
        line.note(wait, self._clock.now())
        return line

    def _enter(self, line: Line, model: ModelId, place: Place) -> None:
        try:
            line.queue.enter(place.ticket)
        except OverloadedError as error:
            self._close_empty(line, model)
            advice = self._advice(model, len(line.queue))
            raise OverloadedError(error.message, retry_after_s=advice) from None
        line.places[place.ticket.id] = place

    def _leave(self, line: Line, model: ModelId, place: Place) -> None:
        """Take a request out of its line, and its place back from the counts, if it has one."""
        line.queue.leave(place.ticket.id)
        line.places.pop(place.ticket.id, None)
        self._close_empty(line, model)
        serve = place.granted.result() if place.granted.done() else None
        if serve is not None:
            self._in_flight.release(serve.replica)

    def _close_empty(self, line: Line, model: ModelId) -> None:
        if not line.places and self._lines.get(model) is line:
            del self._lines[model]

    def _missed(self, line: Line, model: ModelId) -> RequestError:
        if line.wait.is_full:
            return OverloadedError(
                f"no place with {model!r} came free in time",
                retry_after_s=self._advice(model, len(line.queue)),
            )
        return self._too_late(line.wait)

    def _too_late(self, wait: Wait) -> ModelLoadingError:
        store, now = self._store, self._clock.now()
        outlook = explain(
            store.state,
            store.catalogue,
            wait.model,
            policy=store.policy,
            rates=store.rates(now),
            now=now,
        )
        return too_late(wait, outlook.expected_s)

    def _advice(self, model: ModelId, waiting: int) -> float:
        drain, now = self._drains.get(model), self._clock.now()
        rate = 0.0 if drain is None else per_second(drain, now, memory_s=DRAIN_MEMORY_S)
        return retry_after_s(waiting, rate)

    async def _run(self) -> None:
        while True:
            revision = self._store.state.revision
            self._observe()
            for model in tuple(self._lines):
                self._let_through(model)
            try:
                async with asyncio.timeout(TICK_S):
                    await self._store.changed(revision)
            except TimeoutError:
                pass

    def _observe(self) -> None:
        """Take the counts of every report that is new."""
        for name, node in self._store.state.nodes.items():
            if node.facts is not None and node.reported_at != self._reported.get(name):
                self._reported[name] = node.reported_at
                for replica in node.replicas.values():
                    self._in_flight.observe(replica.id, replica.in_flight)

    def _freed(self, replica: ReplicaId) -> None:
        self._let_through(replica.model)

    def _let_through(self, model: ModelId) -> None:
        """Let as many through as there are places for, in the order of the queue."""
        line = self._lines.get(model)
        while line is not None and line.queue:
            decision = self.decide(model, RouteHints())
            if isinstance(decision, Refuse):
                self._send_away(line, lambda place: True)
                return
            if isinstance(decision, Wait):
                line.note(decision, self._clock.now())
                if decision.is_load:
                    self._send_away(line, lambda place: not place.hints.cold_ok)
                return
            ticket = line.queue.next()
            assert ticket is not None
            self._grant(model, line.places[ticket.id])

    def _grant(self, model: ModelId, place: Place) -> None:
        # The hints change which replica it is, not whether there is one.
        serve = self.decide(model, place.hints)
        assert isinstance(serve, Serve)
        self._in_flight.reserve(serve.replica)
        now = self._clock.now()
        self._drains[model] = counted(self._drains.get(model), now, memory_s=DRAIN_MEMORY_S)
        place.granted.set_result(serve)

    def _send_away(self, line: Line, is_meant: Callable[[Place], bool]) -> None:
        for place in tuple(line.places.values()):
            if is_meant(place) and line.queue.leave(place.ticket.id):
                place.granted.set_result(None)
