"""The life of a worker."""

import asyncio
import logging
import random
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.listen import ListeningSocket
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.share import Seat
from cortex_core.server.vitals import Vitals
from cortex_gateway.clients.inner import Inner, open_inner
from cortex_gateway.clients.upstream import open_upstream
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.ports import Upstream
from cortex_gateway.proxy.aside import Aside
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.reload.edge import Edge
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.workers import wire
from cortex_gateway.workers.channel import Channel, connect
from cortex_gateway.workers.edge import Divided, endpoints
from cortex_gateway.workers.mirror import (
    FarLines,
    MirrorJournal,
    MirrorPlaces,
    MirrorStore,
    Say,
)
from cortex_gateway.workers.notes import Notes
from cortex_gateway.workers.sums import families_of


async def run_worker(
    api: ListeningSocket,
    pair: socket.socket,
    seat: Seat,
    *,
    clock: Clock,
    environ: Mapping[str, str],
) -> None:
    """Serve until the control process wants the end, or is gone.

    Args:
        api: where callers come in, shared with the other workers.
        pair: leads to the control process.
        seat: of this worker, for an even share of the callers.
        clock: of the process.
        environ: of the process.
    """
    link = Link(clock)
    await connect(link.channel, pair)
    link.channel.say(wire.Hello())
    try:
        worker = await link.started
    except ConnectionError:
        return
    settings = worker.setup.settings.gateway
    logging.getLogger().setLevel(settings.log_level.upper())
    async with (
        open_upstream(settings.timeouts, worker.live) as upstream,
        open_inner(worker.setup.inner.name, worker.setup.inner.token) as inner,
    ):
        app = worker.app(upstream, inner)
        listener = Listener(app=app, socket=api, keep_alive_s=PUBLIC_KEEP_ALIVE_S, seat=seat)
        with _on_signals(link.shutdown), worker.vitals.running():
            await serve(
                worker.vitals.of([listener]),
                drain=worker.drain,
                shutdown=link.shutdown,
                environ=environ,
                drain_timeout_s=settings.timeouts.drain_s,
            )
        # What was counted last is not to be lost with the process.
        worker.notes.flush()
        link.channel.say(wire.Figures(number=0, families=families_of(worker.registry)))
        link.channel.close()
        await link.lost.wait()


class Link:
    """The worker's end of the pair, from before it knows anything.

    Args:
        clock: of the process.
    """

    def __init__(self, clock: Clock) -> None:
        self.shutdown = Shutdown()
        self.started: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        """Once it is known what is in force."""
        self.lost = asyncio.Event()
        self.channel = Channel(
            msgspec.msgpack.Decoder(list[wire.FromControl]), self._take, self._end
        )
        self._clock = clock

    def _take(self, message: wire.FromControl) -> None:
        if isinstance(message, wire.Drain):
            self.shutdown.ask()
        elif self.started.done():
            self.started.result().take(message)
        elif isinstance(message, wire.Setup):
            self.started.set_result(Worker(message, self.channel, self._clock))

    def _end(self) -> None:
        self.lost.set()
        self.shutdown.is_wanted.set()
        if not self.started.done():
            self.started.set_exception(ConnectionResetError("the control process is gone"))


class Worker:
    """What a worker has.

    Args:
        setup: what is in force at first.
        channel: to the control process.
        clock: of the process.
    """

    def __init__(self, setup: wire.Setup, channel: Channel[wire.FromControl], clock: Clock) -> None:
        self.setup = setup
        """The first one."""
        self.live = LiveSettings(setup.settings)
        self.drain = Drain()
        self.registry = CollectorRegistry()
        self.vitals = Vitals(self.registry, "cortex", self.drain)
        self._say: Say = channel.say
        self._note: Say = channel.note
        self.notes = Notes(self._say)
        """What is gathered about requests."""
        self.aside = Aside()
        self._clock = clock
        self._accesses = dict(setup.accesses)
        self._edge = Edge(self.live, self._accesses)
        self._store = MirrorStore(
            self._say, self._note, self.notes, setup.catalogue, setup.settings.eviction.policy
        )
        self._places = MirrorPlaces(self._say)
        self._lines = FarLines(
            self._say,
            store=self._store,
            in_flight=self._places,
            settings=self.live,
            clock=clock,
            random=random.random,
        )

    def app(self, upstream: Upstream, inner: Inner) -> ASGIApp:
        """Return what is served."""
        note, metrics = self._note, GatewayMetrics(self.registry)
        traces = self.setup.settings.trace.path is not None
        proxy = Proxy(
            store=self._store,
            upstream=upstream,
            settings=self.live,
            metrics=metrics,
            clock=self._clock,
            journal=MirrorJournal(self._clock, metrics.decided, self.notes),
            random=random.random,
            accesses=self._accesses,
            trace=(lambda arrival: note(wire.Traced(arrival=arrival))) if traces else None,
            in_flight=self._places,
            lines=self._lines,
            aside=self.aside,
        )
        served = endpoints(proxy, self._store, self._clock)
        divided = Divided(self._edge.opened(served), frozenset(served.endpoints), inner)
        return self._edge.protected(without_lifespan(divided), self.drain)

    def take(self, message: wire.FromControl) -> None:
        """Take what the control process says."""
        match message:
            case wire.Setup():
                self._apply(message)
            case wire.Fleet():
                self._store.show(message)
                self._lines.observe()
            case wire.Recall():
                self._places.recall(message.replica)
            case wire.Tell():
                self._places.tidy()
                self.notes.flush()
                self._say(wire.Figures(number=message.number, families=families_of(self.registry)))
            case wire.Beat() | wire.Waits() | wire.Granted() | wire.Denied():
                self._lines.take(message)
            case wire.Drain():
                pass  # the link's to take

    def _apply(self, setup: wire.Setup) -> None:
        """Put a configuration in force."""
        self._edge.apply(setup.settings, setup.accesses)
        self._store.configure(setup.catalogue, setup.settings.eviction.policy)


def without_lifespan(app: ASGIApp) -> ASGIApp:
    """Return `app`, which is given requests alone."""

    async def requests(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)

    return requests


@contextmanager
def _on_signals(shutdown: Shutdown) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for the end, once: haste is the control process's to ask for."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.is_wanted.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
