"""Bring the gateway's rooms up, connected with each other, and down again."""

import asyncio
import logging
import os
import pathlib
import random
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState
from cortex_core.ids import NodeName
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_core.server.guard import Guard
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.limits import Limits
from cortex_core.server.listen import (
    ListeningSocket,
    closing_all,
    inherited_listeners,
    open_listener,
)
from cortex_core.server.metrics import metrics_app
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_core.server.vitals import Vitals
from cortex_core.units import bytes_from_mib
from cortex_gateway.api.background import Background
from cortex_gateway.api.direct import Direct
from cortex_gateway.api.documents import find_pdf_reader
from cortex_gateway.app import build_app
from cortex_gateway.clients.node import node_client_maker
from cortex_gateway.clients.session import open_session
from cortex_gateway.clients.upstream import open_upstream
from cortex_gateway.control.commands import Commands
from cortex_gateway.control.control import Control, open_control
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.reconciler import Reconciler
from cortex_gateway.control.roster import MakeClient, Roster
from cortex_gateway.control.store import FleetStore
from cortex_gateway.control.watcher import DEFAULT_PACE, WatchPace
from cortex_gateway.fleet_metrics import FleetCollector
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.middleware import Origins
from cortex_gateway.ports import Configured, Upstream
from cortex_gateway.proxy.access import Access
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.records.store import RecordStore, open_store
from cortex_gateway.reload.configuration import Configuration, read_configuration
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.reload.reloader import Reloader
from cortex_gateway.settings import ApiSettings, ResponsesSettings, TraceSettings
from cortex_gateway.trace import TraceRecorder, open_trace

logger = logging.getLogger(__name__)


async def run_gateway(
    path: pathlib.Path | None,
    configuration: Configuration,
    *,
    clock: Clock,
    environ: Mapping[str, str],
    version: str,
) -> None:
    """Serve until a signal asks for the end; the whole life of the process.

    Args:
        path: of the settings file, which is read again on SIGHUP.
        configuration: what it says now.
        clock: the process's.
        environ: the process's.
        version: of this distribution.

    Raises:
        ListenError: an address cannot be listened on.
    """
    settings = configuration.settings.gateway
    inherited = inherited_listeners(environ, os.getpid())
    with closing_all(inherited):
        api = open_listener(settings.listen, inherited)
        with closing_all([api]):
            metrics = open_listener(settings.metrics_listen, inherited)
            drain, shutdown, registry = Drain(), Shutdown(), CollectorRegistry()
            vitals = Vitals(registry, "cortex", drain)
            with closing_all([metrics]), shutdown.on_signals(), vitals.running():
                async with open_gateway(
                    configuration,
                    file=path,
                    read=partial(read_configuration, path, environ),
                    clock=clock,
                    registry=registry,
                    drain=drain,
                    version=version,
                ) as gateway:
                    _tell_start(configuration, api.address, metrics.address)
                    with _on_hangup(gateway.reloader.hang_up):
                        await serve(
                            vitals.of(
                                [
                                    _listener(gateway.app, api),
                                    _listener(protect(metrics_app(registry)), metrics),
                                ]
                            ),
                            drain=drain,
                            shutdown=shutdown,
                            environ=environ,
                            drain_timeout_s=settings.timeouts.drain_s,
                        )


class Gateway(NamedTuple):
    """A gateway that can be served."""

    app: ASGIApp
    reloader: Reloader


@asynccontextmanager
async def open_gateway(
    configuration: Configuration,
    *,
    file: pathlib.Path | None,
    read: Callable[[], Configuration],
    clock: Clock,
    registry: CollectorRegistry,
    drain: Drain,
    version: str,
) -> AsyncIterator[Gateway]:
    """Yield the API, ready to be served; everything behind it runs while the context is open.

    Args:
        configuration: what is in force at first.
        file: the settings file, to be shown.
        read: reads another configuration, when that is asked for.
        clock: the process's.
        registry: of the process's metrics.
        drain: ends the requests at the end.
        version: of this distribution.
    """
    settings = configuration.settings
    live = LiveSettings(settings)
    accesses = dict(configuration.accesses)
    metrics = GatewayMetrics(registry)
    journal = Journal(clock, metrics.decided)
    async with (
        open_session(settings.gateway.timeouts) as session,
        open_upstream(settings.gateway.timeouts, live) as upstream,
        _trace(settings.trace, metrics) as trace,
        control_plane(
            configuration.catalogue,
            make_client=node_client_maker(session, live.node_patience, accesses),
            metrics=metrics,
            journal=journal,
            clock=clock,
            policy=settings.eviction.policy,
            load_limit_s=lambda: live.load_s,
        ) as control,
    ):
        control.roster.set(settings.endpoints, settings.upstreams)
        registry.register(_gauges(control.store, clock))
        levers = Levers(control=control, live=live, accesses=accesses)
        proxy = levers.proxy(upstream, metrics, journal, clock, trace)
        reloader = Reloader(configuration, file=file, read=read, apply=levers.apply, clock=clock)
        keeps = settings.gateway.responses
        opening = open_api(
            control, proxy, keeps, reloader, clock=clock, drain=drain, version=version
        )
        async with opening as app, reloader:
            yield Gateway(levers.protected(app, settings.gateway, drain), reloader)


class Levers:
    """Everything that a reload moves, at one blow: nothing here waits or fails.

    Args:
        control: the fleet.
        live: the settings, as everybody reads them.
        accesses: of nodes and upstreams; this very mapping is filled anew.
    """

    def __init__(
        self, *, control: Control, live: LiveSettings, accesses: dict[NodeName, Access]
    ) -> None:
        self._accesses = accesses
        self._origins: Origins | None = None
        self._guard: Guard | None = None
        self._control = control
        self._live = live

    def proxy(
        self,
        upstream: Upstream,
        metrics: GatewayMetrics,
        journal: Journal,
        clock: Clock,
        trace: TraceRecorder | None,
    ) -> Proxy:
        """Return the data path over what a reload moves."""
        return Proxy(
            store=self._control.store,
            upstream=upstream,
            settings=self._live,
            metrics=metrics,
            clock=clock,
            journal=journal,
            random=random.random,
            accesses=self._accesses,
            trace=None if trace is None else trace.note,
        )

    def protected(self, app: ASGIApp, settings: ApiSettings, drain: Drain) -> ASGIApp:
        """Return `app` within what its settings put around it."""
        limits = Limits(max_body_bytes=bytes_from_mib(settings.max_body_mb))
        self._origins = Origins(app, settings.cors_origins)
        self._guard = protect(self._origins, drain=drain, limits=limits)
        return self._guard

    def apply(self, configuration: Configuration) -> None:
        """Put a configuration in force."""
        settings = configuration.settings
        self._live.current = settings
        before = dict(self._accesses)
        self._accesses.clear()
        self._accesses.update(configuration.accesses)
        self._control.roster.set(settings.endpoints, settings.upstreams)
        for name in settings.endpoints:
            if before.get(name) != self._accesses.get(name):
                # What it is told with another token may differ.
                self._control.roster.watch_anew(name)
        self._control.store.configure(configuration.catalogue, settings.eviction.policy)
        logging.getLogger().setLevel(settings.gateway.log_level.upper())
        if self._origins is not None and self._guard is not None:
            self._origins.allow(settings.gateway.cors_origins)
            self._guard.limit_bodies(bytes_from_mib(settings.gateway.max_body_mb))


@asynccontextmanager
async def open_api(
    control: Control,
    proxy: Proxy,
    keeps: ResponsesSettings,
    configured: Configured,
    *,
    clock: Clock,
    drain: Drain,
    version: str,
) -> AsyncIterator[ASGIApp]:
    """Yield the routes, with what lets requests through, keeps and makes responses behind them.

    Raises:
        SettingsError: the file of responses cannot be used.
    """
    async with (
        records(keeps, clock) as kept,
        Background(keeps.background_limit) as background,
        proxy.lines.running(),
    ):
        app = build_app(
            control=control,
            configured=configured,
            proxy=proxy,
            drain=drain,
            version=version,
            clock=clock,
            read_pdf=find_pdf_reader(),
            records=kept,
            background=background,
            new_id=lambda: secrets.token_hex(16),
        )
        yield Direct(app)


@asynccontextmanager
async def records(settings: ResponsesSettings, clock: Clock) -> AsyncIterator[RecordStore | None]:
    """Open where responses are kept, if they are to be.

    Raises:
        SettingsError: the file cannot be used.
    """
    if not settings.store:
        yield None
        return
    async with open_store(
        settings.path,
        now=clock.wall,
        retention_s=settings.retention_s,
        max_bytes=bytes_from_mib(settings.max_mb),
    ) as store:
        yield store


def _trace(
    settings: TraceSettings, metrics: GatewayMetrics
) -> AbstractAsyncContextManager[TraceRecorder | None]:
    return open_trace(
        settings.path,
        max_bytes=bytes_from_mib(settings.max_mb),
        # Another one with each start: a trace tells callers apart, and not who they are.
        key=secrets.token_bytes(16),
        lost=metrics.trace_lost,
    )


@asynccontextmanager
async def control_plane(
    catalogue: Catalogue,
    *,
    make_client: MakeClient,
    metrics: GatewayMetrics,
    journal: Journal,
    clock: Clock,
    policy: EvictionPolicy,
    load_limit_s: Callable[[], float],
    pace: WatchPace = DEFAULT_PACE,
) -> AsyncIterator[Control]:
    """Watch a fleet, without nodes at first, and load what is wanted while the context is open."""
    store = FleetStore(FleetState(), catalogue, policy)
    async with asyncio.TaskGroup() as tasks:
        roster = Roster(store=store, make_client=make_client, clock=clock, pace=pace, tasks=tasks)
        commands = Commands(store=store, clients=roster.clients, metrics=metrics, clock=clock)
        reconciler = Reconciler(store=store, commands=commands, journal=journal, clock=clock)
        reconciling = tasks.create_task(reconciler.run(), name="reconcile")
        try:
            async with open_control(
                store, roster, commands, journal=journal, clock=clock, load_limit_s=load_limit_s
            ) as control:
                yield control
        finally:
            reconciling.cancel()
            roster.stop()


def _gauges(store: FleetStore, clock: Clock) -> FleetCollector:
    """Return the gauges of what is in `store`."""
    return FleetCollector(lambda: store.state, store.waiting, clock.now)


@contextmanager
def _on_hangup(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` for every SIGHUP, which would end the process otherwise."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, handler)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _listener(app: ASGIApp, socket: ListeningSocket) -> Listener:
    return Listener(app=app, socket=socket, keep_alive_s=PUBLIC_KEEP_ALIVE_S)


def _tell_start(configuration: Configuration, api: str, metrics: str) -> None:
    settings = configuration.settings
    logger.info("listening on %s, metrics on %s", api, metrics)
    logger.info(
        "%d nodes, %d upstreams, %d models in the catalogue",
        len(settings.neurons),
        len(settings.upstreams),
        len(configuration.catalogue.profiles),
    )
    if not settings.neurons and not settings.upstreams:
        logger.warning("no [[neurons]] are configured: nothing can be served")
