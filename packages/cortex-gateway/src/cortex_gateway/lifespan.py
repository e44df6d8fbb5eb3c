"""Bring the gateway's rooms up, connected with each other, and down again."""

import asyncio
import logging
import os
import pathlib
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
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
from cortex_gateway.ports import Configured
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.records.store import RecordStore, open_store
from cortex_gateway.reload.configuration import Configuration, read_configuration
from cortex_gateway.reload.levers import Levers
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.reload.reloader import Reloader
from cortex_gateway.settings import ResponsesSettings, TraceSettings
from cortex_gateway.trace import TraceRecorder, open_trace
from cortex_gateway.workers.desk import Rooms
from cortex_gateway.workers.staffed import Serving, serve_staffed

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
            # With workers, callers' requests are theirs.
            vitals = Vitals(registry, "cortex", drain if settings.workers == 1 else Drain())
            serving = Serving(
                api=api,
                metrics=metrics,
                registry=registry,
                vitals=vitals,
                drain=drain,
                shutdown=shutdown,
                environ=environ,
            )
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
                        await _serve(gateway, configuration, serving)


async def _serve(gateway: "Gateway", configuration: Configuration, serving: Serving) -> None:
    settings, tell = configuration.settings.gateway, gateway.levers.tell
    if settings.workers > 1:
        await serve_staffed(gateway.app, gateway.rooms, configuration, tell, serving)
        return
    metrics = protect(metrics_app(serving.registry))
    await serve(
        serving.vitals.of(
            [_listener(gateway.app, serving.api), _listener(metrics, serving.metrics)]
        ),
        drain=serving.drain,
        shutdown=serving.shutdown,
        environ=serving.environ,
        drain_timeout_s=settings.timeouts.drain_s,
    )


class Gateway(NamedTuple):
    """A gateway that can be served."""

    app: ASGIApp
    reloader: Reloader
    levers: Levers
    rooms: Rooms


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
        keeps, rooms = settings.gateway.responses, _rooms(control, proxy, trace, live, clock)
        opening = open_api(
            control, proxy, keeps, reloader, clock=clock, drain=drain, version=version
        )
        async with opening as app, reloader:
            yield Gateway(levers.protected(app, drain), reloader, levers, rooms)


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


def _rooms(
    control: Control, proxy: Proxy, trace: TraceRecorder | None, live: LiveSettings, clock: Clock
) -> Rooms:
    """Return what this process has for its workers, if it has any."""
    return Rooms(
        settings=live,
        clock=clock,
        store=control.store,
        lines=proxy.lines,
        in_flight=proxy.in_flight,
        journal=proxy.journal,
        trace=None if trace is None else trace.note,
    )


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
