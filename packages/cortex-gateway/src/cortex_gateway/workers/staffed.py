"""Serving with workers: they have the callers, and the control process has everything else."""

import asyncio
import secrets
from collections.abc import Callable, Mapping

import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.listen import ListeningSocket, closing_all, open_abstract
from cortex_core.server.metrics import metrics_app
from cortex_core.server.notify import STOPPING, notify
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.share import open_memory
from cortex_core.server.stack import protect
from cortex_core.server.vitals import Vitals
from cortex_gateway.clients.inner import behind_workers
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.workers import wire
from cortex_gateway.workers.crew import Crew
from cortex_gateway.workers.desk import Rooms

_CUT_S = 15.0
"""How long a worker may take to end after its drain."""


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway is served with, however many processes do."""

    api: ListeningSocket
    """Where callers come in."""
    metrics: ListeningSocket
    """Where scrapers come in."""
    registry: CollectorRegistry
    vitals: Vitals
    drain: Drain
    shutdown: Shutdown
    """Who may ask for the end."""
    environ: Mapping[str, str]


async def serve_staffed(
    app: ASGIApp,
    rooms: Rooms,
    configuration: Configuration,
    on_reload: Callable[[Callable[[Configuration], None]], None],
    serving: Serving,
) -> None:
    """Serve until that is to end; see `serve`.

    Args:
        app: serves every path.
        rooms: of this process.
        configuration: in force at first.
        on_reload: takes what is to be told of every other one.
        serving: of this process.
    """
    count, drain_s = configuration.settings.gateway.workers, _drain_s(configuration)
    with open_memory(count) as memory, closing_all([inner := open_abstract()]):
        token = secrets.token_hex(16)
        async with asyncio.TaskGroup() as tasks:
            crew = Crew(
                rooms,
                configuration,
                api=serving.api,
                memory=memory,
                inner=wire.Inner(name=inner.host, token=token),
                registry=serving.registry,
                environ=serving.environ,
                tasks=tasks,
            )
            on_reload(crew.configure)
            async with crew.working(count):
                await _serve(behind_workers(app, token), inner, crew, serving, drain_s)


async def _serve(
    app: ASGIApp, inner: ListeningSocket, crew: Crew, serving: Serving, drain_s: float
) -> None:
    """Serve workers and scrapers until the workers have ended."""
    over = Shutdown()
    metrics = _listener(protect(_counted(crew)), serving.metrics)
    async with asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(_end(crew, serving, over, drain_s))
        await serve(
            [_listener(app, inner), *serving.vitals.of([metrics])],
            drain=serving.drain,
            shutdown=over,
            environ=serving.environ,
            drain_timeout_s=drain_s,
        )
        ending.cancel()


async def _end(crew: Crew, serving: Serving, over: Shutdown, drain_s: float) -> None:
    """Have the workers end when that is wanted, and then this process."""
    await serving.shutdown.is_wanted.wait()
    notify(STOPPING, serving.environ)
    serving.drain.is_draining = True
    crew.drain()

    async def hurry() -> None:
        await serving.shutdown.is_urgent.wait()
        crew.drain()

    async with asyncio.TaskGroup() as tasks:
        haste = tasks.create_task(hurry())
        await crew.end(drain_s + _CUT_S)
        haste.cancel()
    over.ask()


def _drain_s(configuration: Configuration) -> float:
    return configuration.settings.gateway.timeouts.drain_s


def _listener(app: ASGIApp, socket: ListeningSocket) -> Listener:
    return Listener(app=app, socket=socket, keep_alive_s=PUBLIC_KEEP_ALIVE_S)


def _counted(crew: Crew) -> ASGIApp:
    """Return the metrics of all processes."""
    app = metrics_app(crew.registry)

    async def fresh(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await crew.count()
        await app(scope, receive, send)

    return fresh
