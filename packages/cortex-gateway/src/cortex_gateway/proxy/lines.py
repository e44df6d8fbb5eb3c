"""Requests in line for their models: who is next, and where to.

A request whose model has a place for it goes straight through. All others wait in one fair queue
per model, whatever they wait for: a load, or a place. With every change of the fleet, and with
every place that comes free, the one that is next is let through; a place is counted as taken
before its request is told, so that two of them never count on the same one.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from cortex_core.errors import OverloadedError, RequestError
from cortex_core.fleet.rates import Rate, counted, per_second
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.explain import explain
from cortex_core.routing.queue import FairQueue, Ticket, retry_after_s
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait, route
from cortex_core.server.clock import Clock
from cortex_gateway.ports import ProxySettings, Store
from cortex_gateway.proxy.hold import FIRST_HEARTBEAT_S, Beat, describe, too_late
from cortex_gateway.proxy.inflight import InFlight

logger = logging.getLogger(__name__)

TICK_S = 0.25
"""How often all lines are looked at, whether or not something has changed: ramps and cool-downs
end by time. In between only lines are whose model is loaded somewhere: to find out what becomes of
one that is not takes a look at every node, and a big fleet changes all the time."""

OUTLOOK_S = 1.0
"""How long the expected time of a load is believed; many who wait for it may be late at once."""

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
        self.granted: asyncio.Future[Serve | Refuse] = asyncio.get_running_loop().create_future()
        """Where to go, or why to leave."""


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
        self.endure(now)

    def endure(self, now: float) -> None:
        """Note that the latest reason has held until now."""
        if self.wait.is_load:
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
        self._expected: dict[ModelId, tuple[float, float | None]] = {}
        """When each load was last reckoned, and how many seconds it was to take from then."""
        self.on_line: Callable[[ModelId], None] = lambda model: None
        """Called whenever a request begins to stand in line."""
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

    def decide(self, model: ModelId, hints: RouteHints, now: float | None = None) -> Decision:
        """Decide from the newest snapshot, without regard to who else waits."""
        return route(
            self._store.state,
            self._store.catalogue,
            model,
            hints=hints,
            in_flight=self._in_flight.depths,
            now=self._clock.now() if now is None else now,
            draw=self._random(),
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
        if line is None or not line.queue:
            decision = self.decide(model, hints)
            if not isinstance(decision, Wait):
                return Turn(decision=decision)
            line = self._open(model, decision)
        elif not (hints.cold_ok or line.wait.is_full):
            # That others wait for a load is no reason to have this one wait for it.
            decision = self.decide(model, hints)
            if isinstance(decision, Refuse):
                return Turn(decision=decision)
        on_wait(line.wait)
        return await self._stand(line, model, ticket, hints, deadline, beat)

    async def _stand(
        self,
        line: Line,
        model: ModelId,
        ticket: Ticket,
        hints: RouteHints,
        deadline: float,
        beat: Beat | None,
    ) -> Turn:
        place = Place(ticket, hints)
        self._enter(line, model, place)
        decision = None
        with self._store.demand(model):
            try:
                decision = await self._granted(line, model, place, deadline, beat)
            finally:
                if self._leave(line, model, place) and decision is None:
                    # It left at the moment of its turn, which is the next one's now.
                    self._let_through(model)
        began = ticket.entered_at
        is_cold = line.loading_until >= began
        load_s = line.loading_until - began if is_cold else 0.0
        return Turn(decision=decision, is_cold=is_cold, load_s=load_s)

    async def _granted(
        self, line: Line, model: ModelId, place: Place, deadline: float, beat: Beat | None
    ) -> Serve | Refuse:
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
            line = self._lines[model] = Line(FairQueue(max_depth=0, max_per_caller=0), wait)
        line.note(wait, self._clock.now())
        return line

    def _enter(self, line: Line, model: ModelId, place: Place) -> None:
        # The settings may have changed since the line was opened.
        line.queue.bound(
            max_depth=self._settings.max_waiting,
            max_per_caller=self._settings.max_waiting_per_caller,
        )
        try:
            line.queue.enter(place.ticket)
        except OverloadedError as error:
            self._close_empty(line, model)
            advice = self._advice(model, len(line.queue))
            raise OverloadedError(error.message, retry_after_s=advice) from None
        line.places[place.ticket.id] = place
        line.endure(self._clock.now())
        self.on_line(model)

    def _leave(self, line: Line, model: ModelId, place: Place) -> bool:
        """Take a request out of its line, and its place back from the counts.

        Returns:
            Whether it had one.
        """
        line.queue.leave(place.ticket.id)
        line.places.pop(place.ticket.id, None)
        self._close_empty(line, model)
        decision = place.granted.result() if place.granted.done() else None
        if not isinstance(decision, Serve):
            return False
        self._in_flight.release(decision.replica)
        return True

    def _close_empty(self, line: Line, model: ModelId) -> None:
        if not line.places and self._lines.get(model) is line:
            del self._lines[model]

    def _missed(self, line: Line, model: ModelId) -> RequestError:
        if line.wait.is_full:
            return OverloadedError(
                f"no place with {model!r} came free in time",
                retry_after_s=self._advice(model, len(line.queue)),
            )
        return too_late(line.wait, self._expected_s(model))

    def _expected_s(self, model: ModelId) -> float | None:
        """Return how long a load will still take, as far as is known."""
        store, now = self._store, self._clock.now()
        at, expected_s = self._expected.get(model, (-math.inf, None))
        if now - at >= OUTLOOK_S:
            rates, policy = store.rates(now), store.policy
            outlook = explain(
                store.state, store.catalogue, model, policy=policy, rates=rates, now=now
            )
            self._expected[model] = at, expected_s = now, outlook.expected_s
        return None if expected_s is None else max(0.0, expected_s - (now - at))

    def _advice(self, model: ModelId, waiting: int) -> float:
        drain, now = self._drains.get(model), self._clock.now()
        rate = 0.0 if drain is None else per_second(drain, now, memory_s=DRAIN_MEMORY_S)
        return retry_after_s(waiting, rate)

    async def _run(self) -> None:
        tick_at = -math.inf
        while True:
            revision = self._store.state.revision
            is_tick = self._clock.now() >= tick_at
            try:
                await self._look(is_tick)
            except Exception:
                logger.exception("a look at who waits failed; others follow")
            now = self._clock.now()
            if is_tick:
                tick_at = now + TICK_S
            try:
                async with asyncio.timeout(max(0.0, tick_at - now)):
                    await self._store.changed(revision)
            except TimeoutError:
                pass

    async def _look(self, is_tick: bool) -> None:
        """Let through who can be, in every line that may move."""
        self._observe()
        for model in tuple(self._lines):
            pairs = self._store.state.replicas_of(model)
            if any(replica.status is ReplicaStatus.LOADED for _, replica in pairs):
                self._let_through(model)
            elif is_tick:
                self._let_through(model)
                # Others are not to wait until every line was looked at.
                await asyncio.sleep(0)

    def _observe(self) -> None:
        """Take the counts of every report that is new."""
        nodes = self._store.state.nodes
        for name in self._reported.keys() - nodes.keys():
            del self._reported[name]
            self._in_flight.forget(name)
        for name, node in nodes.items():
            if node.facts is not None and node.reported_at != self._reported.get(name):
                self._reported[name] = node.reported_at
                for replica in node.replicas.values():
                    self._in_flight.observe(replica.id, replica.in_flight)

    def _freed(self, replica: ReplicaId) -> None:
        if not self._lines:
            return
        # A place with an engine is next for whoever has waited for longest, for its base or for
        # an adapter.
        for model in sorted(self._store.state.sharing(replica), key=self._since):
            self._let_through(model)

    def _since(self, model: ModelId) -> float:
        line = self._lines.get(model)
        oldest = None if line is None else next(iter(line.places.values()), None)
        return math.inf if oldest is None else oldest.ticket.entered_at

    def _let_through(self, model: ModelId) -> None:
        """Let as many through as there are places for, in the order of the queue."""
        line = self._lines.get(model)
        while line is not None and line.queue:
            now = self._clock.now()
            decision = self.decide(model, RouteHints(), now)
            if isinstance(decision, Refuse):
                line.endure(now)
                self._send_away(line, decision, lambda place: True)
                return
            if isinstance(decision, Wait):
                line.note(decision, now)
                if not decision.is_full:
                    self._send_unwilling_away(line, model, now)
                return
            line.endure(now)
            ticket = line.queue.next()
            assert ticket is not None
            self._grant(model, line.places[ticket.id], now)

    def _grant(self, model: ModelId, place: Place, now: float) -> None:
        # The hints change which replica it is, not whether there is one.
        serve = self.decide(model, place.hints, now)
        assert isinstance(serve, Serve)
        self._in_flight.reserve(serve.replica)
        self._drains[model] = counted(self._drains.get(model), now, memory_s=DRAIN_MEMORY_S)
        place.granted.set_result(serve)

    def _send_unwilling_away(self, line: Line, model: ModelId, now: float) -> None:
        """Turn away who does not want to wait for a load."""
        if all(place.hints.cold_ok for place in line.places.values()):
            return
        decision = self.decide(model, RouteHints(cold_ok=False), now)
        if isinstance(decision, Refuse):
            self._send_away(line, decision, lambda place: not place.hints.cold_ok)

    def _send_away(self, line: Line, refusal: Refuse, is_meant: Callable[[Place], bool]) -> None:
        for place in tuple(line.places.values()):
            if is_meant(place) and line.queue.leave(place.ticket.id):
                place.granted.set_result(refusal)
