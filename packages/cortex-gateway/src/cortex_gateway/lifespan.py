"""Bring the gateway's rooms up, connected with each other, and down again."""

import asyncio
import logging
import os
import random
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.types import ASGIApp

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import from_endpoints
from cortex_core.ids import NodeName
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.limits import Limits
from cortex_core.server.listen import closing_all, inherited_listeners, open_listener
from cortex_core.server.metrics import metrics_app
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_core.units import bytes_from_mib
from cortex_gateway.api.background import Background
from cortex_gateway.api.documents import find_pdf_reader
from cortex_gateway.app import build_app
from cortex_gateway.clients.node import NodePatience, node_clients
from cortex_gateway.clients.session import open_session
from cortex_gateway.clients.upstream import HttpUpstream
from cortex_gateway.control.commands import Commands
from cortex_gateway.control.reconciler import Reconciler
from cortex_gateway.control.store import FleetStore
from cortex_gateway.control.upstreams import with_upstreams
from cortex_gateway.control.watcher import NodeWatcher, WatchPace
from cortex_gateway.metrics import FleetCollector, GatewayMetrics
from cortex_gateway.middleware import across_origins
from cortex_gateway.ports import NodeClient
from cortex_gateway.proxy.access import Accesses
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.records.store import RecordStore, open_store
from cortex_gateway.settings import (
    EvictionSettings,
    GatewaySettings,
    ResponsesSettings,
    UpstreamEntry,
)

logger = logging.getLogger(__name__)


async def run_gateway(
    settings: GatewaySettings,
    catalogue: Catalogue,
    accesses: Accesses,
    *,
    clock: Clock,
    environ: Mapping[str, str],
    version: str,
) -> None:
    """Serve until a signal asks for the end; the whole life of the process.

    Raises:
        ListenError: an address cannot be listened on.
    """
    inherited = inherited_listeners(environ, os.getpid())
    with closing_all(inherited):
        api = open_listener(settings.gateway.listen, inherited)
        with closing_all([api]):
            metrics = open_listener(settings.gateway.metrics_listen, inherited)
            drain, shutdown, registry = Drain(), Shutdown(), CollectorRegistry()
            with closing_all([metrics]), shutdown.on_signals():
                async with open_gateway(
                    settings,
                    catalogue,
                    accesses,
                    clock=clock,
                    registry=registry,
                    drain=drain,
                    version=version,
                ) as app:
                    _tell_start(settings, catalogue, api.address, metrics.address)
                    await serve(
                        [
                            Listener(app=app, socket=api, keep_alive_s=PUBLIC_KEEP_ALIVE_S),
                            Listener(
                                app=protect(metrics_app(registry)),
                                socket=metrics,
                                keep_alive_s=PUBLIC_KEEP_ALIVE_S,
                            ),
                        ],
                        drain=drain,
                        shutdown=shutdown,
                        environ=environ,
                        drain_timeout_s=settings.gateway.timeouts.drain_s,
                    )


@asynccontextmanager
async def open_gateway(
    settings: GatewaySettings,
    catalogue: Catalogue,
    accesses: Accesses,
    *,
    clock: Clock,
    registry: CollectorRegistry,
    drain: Drain,
    version: str,
) -> AsyncIterator[ASGIApp]:
    """Yield the API, ready to be served; everything behind it runs while the context is open."""
    timeouts = settings.gateway.timeouts
    metrics = GatewayMetrics(registry)
    async with (
        open_session(timeouts) as session,
        control_plane(
            settings.endpoints,
            catalogue,
            upstreams=settings.upstreams,
            clients=node_clients(settings.endpoints, session, NodePatience(load_s=timeouts.load_s)),
            metrics=metrics,
            clock=clock,
            pace=WatchPace(),
            policy=settings.eviction.policy,
        ) as store,
    ):
        registry.register(FleetCollector(lambda: store.state))
        proxy = Proxy(
            store=store,
            upstream=HttpUpstream(session, timeouts),
            settings=settings.proxy,
            metrics=metrics,
            clock=clock,
            random=random.random,
            accesses=accesses,
        )
        limits = Limits(max_body_bytes=bytes_from_mib(settings.gateway.max_body_mb))
        keeps = settings.gateway.responses
        async with open_api(store, proxy, keeps, clock=clock, drain=drain, version=version) as app:
            reachable = across_origins(app, settings.gateway.cors_origins)
            yield protect(reachable, drain=drain, limits=limits)


@asynccontextmanager
async def open_api(
    store: FleetStore,
    proxy: Proxy,
    keeps: ResponsesSettings,
    *,
    clock: Clock,
    drain: Drain,
    version: str,
) -> AsyncIterator[Starlette]:
    """Yield the routes, with what lets requests through, keeps and makes responses behind them.

    Raises:
        SettingsError: the file of responses cannot be used.
    """
    async with (
        records(keeps, clock) as kept,
        Background(keeps.background_limit) as background,
        proxy.lines.running(),
    ):
        yield build_app(
            store=store,
            proxy=proxy,
            drain=drain,
            version=version,
            clock=clock,
            read_pdf=find_pdf_reader(),
            records=kept,
            background=background,
            new_id=lambda: secrets.token_hex(16),
        )


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


@asynccontextmanager
async def control_plane(
    endpoints: Mapping[NodeName, str],
    catalogue: Catalogue,
    *,
    upstreams: Sequence[UpstreamEntry] = (),
    clients: Mapping[NodeName, NodeClient],
    metrics: GatewayMetrics,
    clock: Clock,
    pace: WatchPace,
    policy: EvictionPolicy,
) -> AsyncIterator[FleetStore]:
    """Watch the fleet and load what is wanted for as long as the context is open."""
    state = with_upstreams(from_endpoints(endpoints), upstreams, clock.now())
    store = FleetStore(state, catalogue, policy)
    commands = Commands(store=store, clients=clients, metrics=metrics, clock=clock)
    reconciler = Reconciler(store=store, commands=commands, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(reconciler.run(), name="reconcile")]
        for name, client in clients.items():
            watcher = NodeWatcher(
                name=name, client=client, store=store, clock=clock, random=random.random, pace=pace
            )
            running.append(tasks.create_task(watcher.run(), name=f"watch {name}"))
        try:
            yield store
        finally:
            for task in running:
                task.cancel()


def _tell_start(settings: GatewaySettings, catalogue: Catalogue, api: str, metrics: str) -> None:
    logger.info("listening on %s, metrics on %s", api, metrics)
    logger.info(
        "%d nodes, %d upstreams, %d models in the catalogue",
        len(settings.neurons),
        len(settings.upstreams),
        len(catalogue.profiles),
    )
    if not settings.neurons and not settings.upstreams:
        logger.warning("no [[neurons]] are configured: nothing can be served")
    if settings.eviction.defrag_after_cycles != EvictionSettings().defrag_after_cycles:
        # Accepted, because the file format is given and older files have it.
        logger.warning("eviction.defrag_after_cycles has no effect in this version")
