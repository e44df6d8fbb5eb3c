"""Bring the gateway's rooms up, connected with each other, and down again."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import from_endpoints
from cortex_core.server.clock import Clock
from cortex_gateway.clients.node import HttpNodeClient, NodePatience
from cortex_gateway.control.reconciler import Reconciler
from cortex_gateway.control.store import FleetStore
from cortex_gateway.control.watcher import NodeWatcher, WatchPace
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.settings import GatewaySettings


@asynccontextmanager
async def control_plane(
    settings: GatewaySettings,
    catalogue: Catalogue,
    *,
    session: aiohttp.ClientSession,
    metrics: GatewayMetrics,
    clock: Clock,
    pace: WatchPace,
    patience: NodePatience,
) -> AsyncIterator[FleetStore]:
    """Watch the fleet and load what is wanted for as long as the context is open."""
    store = FleetStore(from_endpoints(settings.endpoints), catalogue)
    clients = {
        name: HttpNodeClient(name=name, endpoint=url, session=session, patience=patience)
        for name, url in settings.endpoints.items()
    }
    reconciler = Reconciler(store=store, clients=clients, metrics=metrics, clock=clock)
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
