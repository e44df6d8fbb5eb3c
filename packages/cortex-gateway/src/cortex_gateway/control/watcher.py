"""Learn what a node holds: its event stream, and polling where there is none."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from cortex_core.errors import NotFoundError, UpstreamError, UpstreamTimeoutError
from cortex_core.fleet.reducers import with_facts, with_miss, with_report
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import NodeName
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.server.clock import Clock
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import NodeClient

logger = logging.getLogger(__name__)


class WatchPace(msgspec.Struct, frozen=True, kw_only=True):
    """How often a node is asked."""

    poll_s: float = 2.0
    """Between the beginnings of two polls; three that fail make a node down."""
    jitter_ratio: float = 0.2
    """The interval varies by so much in both directions, so that polls do not fall together."""


DEFAULT_PACE = WatchPace()


class NodeWatcher:
    """Keeps the snapshot of one node true; the only writer of what the node reports."""

    def __init__(
        self,
        *,
        name: NodeName,
        client: NodeClient,
        store: FleetStore,
        clock: Clock,
        random: Callable[[], float],
        pace: WatchPace,
    ) -> None:
        self._name = name
        self._client = client
        self._store = store
        self._clock = clock
        self._random = random
        self._pace = pace
        self._stamps = itertools.count(1)
        self._newest = 0
        self._has_events = True

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._observe(), name=f"watch {self._name}")
            tasks.create_task(self._answer_refreshes(), name=f"refresh {self._name}")

    async def _observe(self) -> None:
        while True:
            began = self._clock.now()
            try:
                if await self._poll() and self._has_events:
                    await self._follow()
            except Exception:
                logger.exception("watching %s failed; it goes on", self._name)
            spread = self._pace.jitter_ratio * (2 * self._random() - 1)
            interval_s = self._pace.poll_s * (1 + spread)
            # A stream that lived longer than this is followed by a poll at once.
            await self._clock.sleep(max(0.0, began + interval_s - self._clock.now()))

    async def _answer_refreshes(self) -> None:
        while True:
            await self._store.refresh_asked(self._name)
            try:
                await self._poll(is_extra=True)
            except Exception:
                logger.exception("refreshing %s failed; it goes on", self._name)

    async def _poll(self, *, is_extra: bool = False) -> bool:
        """Ask for a report and return whether one came."""
        stamp = next(self._stamps)
        try:
            report = await self._client.report()
        except (UpstreamError, UpstreamTimeoutError) as error:
            # Extra polls follow failed requests and may come in any number. They make a node
            # suspect; that it is down is for the regular ones to say.
            if not is_extra or self._health is NodeHealth.UP:
                self._miss(stamp, error.message)
            return False
        # Together: of a node that is up and of which nothing else is known, requests would be
        # told that it cannot serve them.
        self._apply(stamp, await self._facts_with(report), report)
        return True

    async def _facts_with(self, report: NodeReport) -> NodeFacts | None:
        """Return what discovery finds, if it was not asked in this life of the neuron."""
        known = self._store.state.nodes[self._name].facts
        if known is not None and report.boot_id in (None, known.boot_id):
            return None
        try:
            facts = await self._client.discovery()
        except (UpstreamError, UpstreamTimeoutError) as error:
            logger.warning("discovery of %s failed: %s", self._name, error.message)
            return None
        # Another life may be another version, with an event stream.
        self._has_events = True
        return facts

    async def _follow(self) -> None:
        """Take the events of the node until the stream ends."""
        try:
            async with aclosing(self._client.events()) as stream:
                async for news in stream:
                    self._apply(next(self._stamps), news.facts, news.report)
        except NotFoundError:
            logger.info("%s has no event stream; it is polled", self._name)
            self._has_events = False
        except UpstreamTimeoutError as error:
            self._miss(next(self._stamps), error.message)
        except UpstreamError as error:
            # The poll that follows at once tells whether the node is there.
            logger.info("the event stream of %s broke: %s", self._name, error.message)

    def _apply(self, stamp: int, facts: NodeFacts | None, report: NodeReport | None) -> None:
        """Put news into the snapshot, unless something that was asked later came earlier."""
        if stamp < self._newest:
            return
        self._newest = stamp
        now = self._clock.now()

        def reduce(state: FleetState) -> FleetState:
            # The report of another life voids what was known of the last one, facts included.
            if report is not None:
                state = with_report(state, self._name, report, now)
            return state if facts is None else with_facts(state, self._name, facts)

        self._update(reduce)

    def _miss(self, stamp: int, why: str) -> None:
        if stamp >= self._newest:
            self._newest = stamp
            self._update(lambda state: with_miss(state, self._name, why))

    def _update(self, reducer: Callable[[FleetState], FleetState]) -> None:
        before = self._health
        self._store.update(reducer)
        if self._health is not before:
            error = self._store.state.nodes[self._name].last_error
            logger.info("%s is %s%s", self._name, self._health, f": {error}" if error else "")

    @property
    def _health(self) -> NodeHealth:
        return self._store.state.nodes[self._name].health
