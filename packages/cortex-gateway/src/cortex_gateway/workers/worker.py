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
from cortex_core.server.guard import Guard
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.limits import Limits
from cortex_core.server.listen import ListeningSocket
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_core.server.vitals import Vitals
from cortex_core.units import bytes_from_mib
from cortex_gateway.clients.inner import Inner, open_inner
from cortex_gateway.clients.upstream import open_upstream
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.middleware import Origins
from cortex_gateway.ports import Upstream
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.workers import wire
from cortex_gateway.workers.channel import Channel, connect
from cortex_gateway.workers.edge import Divided, endpoints
from cortex_gateway.workers.mirror import FarLines, MirrorJournal, MirrorPlaces, MirrorStore, Say
from cortex_gateway.workers.sums import families_of


async def run_worker(
    api: ListeningSocket, pair: socket.socket, *, clock: Clock, environ: Mapping[str, str]
) -> None:
    """Serve until the control process wants the end, or is gone.

    Args:
        api: where callers come in, shared with the other workers.
        pair: leads to the control process.
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
        open_inner(worker.setup.inner) as inner,
    ):
        app = worker.app(upstream, inner)
        listener = Listener(app=app, socket=api, keep_alive_s=PUBLIC_KEEP_ALIVE_S)
        with _on_signals(link.shutdown), worker.vitals.running():
            await serve(
                worker.vitals.of([listener]),
                drain=worker.drain,
                shutdown=link.shutdown,
                environ=environ,
                drain_timeout_s=settings.timeouts.drain_s,
            )
        # What was counted last is not to be lost with the process.
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
            self.started.set_result(Worker(message, self.channel.say, self._clock))

    def _end(self) -> None:
        self.lost.set()
        self.shutdown.is_wanted.set()
        if not self.started.done():
            self.started.set_exception(ConnectionResetError("the control process is gone"))


class Worker:
    """What a worker has.

    Args:
        setup: what is in force at first.
        say: says something to the control process.
        clock: of the process.
    """

    def __init__(self, setup: wire.Setup, say: Say, clock: Clock) -> None:
        self.setup = setup
        """The first one."""
        self.live = LiveSettings(setup.settings)
        self.drain = Drain()
        self.registry = CollectorRegistry()
        self.vitals = Vitals(self.registry, "cortex", self.drain)
        self._say = say
        self._clock = clock
        self._accesses = dict(setup.accesses)
        self._origins: Origins | None = None
        self._guard: Guard | None = None
        self._store = MirrorStore(say, setup.catalogue, setup.settings.eviction.policy)
        self._places = MirrorPlaces(say)
        self._lines = FarLines(
            say,
            store=self._store,
            in_flight=self._places,
            settings=self.live,
            clock=clock,
            random=random.random,
        )

    def app(self, upstream: Upstream, inner: Inner) -> ASGIApp:
        """Return what is served."""
        say, gateway = self._say, self.setup.settings.gateway
        traces = self.setup.settings.trace.path is not None
        proxy = Proxy(
            store=self._store,
            upstream=upstream,
            settings=self.live,
            metrics=GatewayMetrics(self.registry),
            clock=self._clock,
            journal=MirrorJournal(self._clock, say),
            random=random.random,
            accesses=self._accesses,
            trace=(lambda arrival: say(wire.Traced(arrival=arrival))) if traces else None,
            in_flight=self._places,
            lines=self._lines,
        )
        served = endpoints(proxy, self._store, self._clock)
        self._origins = Origins(served, gateway.cors_origins)
        divided = Divided(self._origins, frozenset(served.endpoints), inner)
        limits = Limits(max_body_bytes=bytes_from_mib(gateway.max_body_mb))
        self._guard = protect(without_lifespan(divided), drain=self.drain, limits=limits)
        return self._guard

    def take(self, message: wire.FromControl) -> None:
        """Take what the control process says."""
        match message:
            case wire.Setup():
                self._apply(message)
            case wire.Fleet():
                self._store.show(message)
            case wire.Tell():
                self._say(wire.Figures(number=message.number, families=families_of(self.registry)))
            case wire.Beat() | wire.Waits() | wire.Granted() | wire.Denied():
                self._lines.take(message)
            case wire.Drain():
                pass  # the link's to take

    def _apply(self, setup: wire.Setup) -> None:
        """Put a configuration in force."""
        settings = setup.settings
        self.live.current = settings
        self._accesses.clear()
        self._accesses.update(setup.accesses)
        self._store.configure(setup.catalogue, settings.eviction.policy)
        logging.getLogger().setLevel(settings.gateway.log_level.upper())
        if self._origins is not None and self._guard is not None:
            self._origins.allow(settings.gateway.cors_origins)
            self._guard.limit_bodies(bytes_from_mib(settings.gateway.max_body_mb))


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
