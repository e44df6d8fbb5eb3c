"""Serving one or more apps until a signal ends the process in good order."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import uvloop
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError
from starlette.types import ASGIApp

from cortex_core.errors import CortexError, SettingsError
from cortex_core.server.connection import Connection
from cortex_core.server.drain import Drain
from cortex_core.server.failures import lone_error
from cortex_core.server.hypercorn import serve_accepted, take_over, tamed_config
from cortex_core.server.lifespan import Lifespan
from cortex_core.server.listen import ListeningSocket, closing_all
from cortex_core.server.notify import READY, STOPPING, notify
from cortex_core.server.share import Seat, accepting
from cortex_core.server.watchdog import watching

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FAILED = 1
_MISCONFIGURED = 2


class StartError(CortexError):
    """The process cannot start; the message is the one line that the operator needs."""


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One app and where it is served."""

    app: ASGIApp
    """Behind `protect` already."""
    socket: ListeningSocket
    keep_alive_s: float
    """How long a connection may be idle; `PUBLIC_KEEP_ALIVE_S` or `NEURON_KEEP_ALIVE_S`."""
    seat: Seat | None = None
    """Of this process, where others accept on the same socket; the app has no lifespan then."""
    connections: set[Connection] = msgspec.field(default_factory=set)
    """Those that are open; the server keeps them here."""


class Shutdown:
    """The wish to go down: said once, or twice by somebody in a hurry."""

    def __init__(self) -> None:
        self.is_wanted = asyncio.Event()
        self.is_urgent = asyncio.Event()

    def ask(self) -> None:
        """Ask for it; a second call asks for haste."""
        (self.is_urgent if self.is_wanted.is_set() else self.is_wanted).set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.ask)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)


async def serve(
    listeners: Sequence[Listener],
    *,
    drain: Drain,
    shutdown: Shutdown,
    environ: Mapping[str, str],
    drain_timeout_s: float = 30.0,
    hurry_timeout_s: float = 5.0,
    graceful_s: float = 5.0,
    flush_timeout_s: float = 30.0,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve until `shutdown` is asked for, then drain, then run the apps' own shutdown.

    Args:
        listeners: at least one; all end together, the apps' lifespans run side by side.
        drain: of the apps whose requests are waited for.
        shutdown: who may ask for the end; the caller connects it to signals.
        environ: read for `NOTIFY_SOCKET`.
        drain_timeout_s: how long running requests may go on.
        hurry_timeout_s: the same, from a second wish on.
        graceful_s: how long connections may take to end after that.
        flush_timeout_s: how long a caller may take to read an answer's last bytes.
        on_ready: called once all apps have started.

    Raises:
        StartError: an app could not start.
        HypercornChangedError: the installed server is not the known one.
    """
    # In a thread: it reads Hypercorn's source.
    await asyncio.to_thread(take_over)
    lifespans = [Lifespan(listener.app) for listener in listeners]
    over = asyncio.Event()
    servers = [
        _serve_one(lifespan, listener, graceful_s, flush_timeout_s, over)
        for lifespan, listener in zip(lifespans, listeners, strict=True)
    ]
    end = _drained(drain, shutdown, drain_timeout_s, hurry_timeout_s, environ, over)
    failed_start: StartError | None = None
    with closing_all([listener.socket for listener in listeners]):
        try:
            await _serve_all(servers, [_announce(lifespans, environ, on_ready), end])
        except* (LifespanFailureError, LifespanTimeoutError) as group:
            # Raised here, it would come as a group on the first releases of Python 3.11.
            failed_start = StartError(_start_failure(lifespans, group))
    if failed_start is not None:
        raise failed_start
    for lifespan in lifespans:
        if lifespan.failure is not None:
            raise lifespan.failure


def run(main: Coroutine[Any, Any, None], name: str, environ: Mapping[str, str]) -> int:
    """Run a daemon's `main` on uvloop and return the process's exit status.

    What went wrong on purpose is one line on standard error; a bug keeps its traceback. A loop
    that stands still ends the process with `cortex_core.server.watchdog.WEDGED`.

    Args:
        main: the whole life of the process.
        name: what the line begins with.
        environ: says how long the loop may stand still; see `watching`.
    """
    _settle()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_watched(main, environ))
    except (CortexError, ExceptionGroup) as error:
        alone = lone_error(error)
        if not isinstance(alone, CortexError):
            raise
        sys.stderr.write(f"{name}: {alone}\n")
        return _MISCONFIGURED if isinstance(alone, SettingsError) else _FAILED
    return 0


def _settle() -> None:
    """Have the collector of cycles look less often, and never again at what was imported.

    Requests leave next to no cycles behind, and at Python's own thresholds the looking takes 6
    to 9 % of what they cost (`docs/explanation/http-stack.md`). A look at all that has outlived
    one takes half a second with some thousand streams open, in which none of them goes on.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 500, 10)


_Work = Coroutine[Any, Any, None]


async def _watched(main: _Work, environ: Mapping[str, str]) -> None:
    with watching(environ):
        await main


async def _serve_all(servers: Sequence[_Work], beside: Sequence[_Work]) -> None:
    """Run until all servers have ended; what runs beside them is stopped then."""
    async with asyncio.TaskGroup() as tasks:
        others = [tasks.create_task(work) for work in beside]
        async with asyncio.TaskGroup() as group:
            for server in servers:
                group.create_task(server)
        for task in others:
            task.cancel()


async def _serve_one(
    lifespan: Lifespan,
    listener: Listener,
    graceful_s: float,
    flush_timeout_s: float,
    over: asyncio.Event,
) -> None:
    config = tamed_config(
        listener.socket.socket if listener.seat is None else None,
        keep_alive_s=listener.keep_alive_s,
        graceful_s=graceful_s,
        flush_timeout_s=flush_timeout_s,
    )
    config.connections = listener.connections
    # Hypercorn types scopes and messages more closely than Starlette does.
    app: Any = lifespan

    async def ending() -> None:
        await over.wait()
        config.end_connections()

    async with contextlib.AsyncExitStack() as stack:
        if listener.seat is not None:
            serve_caller = partial(serve_accepted, lifespan, config)
            callers = accepting(
                listener.socket.socket, listener.seat, serve_caller, graceful_s=graceful_s
            )
            await stack.enter_async_context(callers)
        await hypercorn_serve(app, config, shutdown_trigger=ending, mode="asgi")


async def _announce(
    lifespans: Sequence[Lifespan], environ: Mapping[str, str], on_ready: Callable[[], None] | None
) -> None:
    for lifespan in lifespans:
        await lifespan.has_started.wait()
    notify(READY, environ)
    if on_ready is not None:
        on_ready()


async def _drained(
    drain: Drain,
    shutdown: Shutdown,
    timeout_s: float,
    hurry_timeout_s: float,
    environ: Mapping[str, str],
    over: asyncio.Event,
) -> None:
    """Wait for the wish to go down, drain, and set `over`, which ends the servers."""
    await shutdown.is_wanted.wait()
    notify(STOPPING, environ)
    logger.info("draining", extra={"in_flight": drain.in_flight})

    async def hurry() -> None:
        await shutdown.is_urgent.wait()
        drain.hurry(hurry_timeout_s)

    async with asyncio.TaskGroup() as tasks:
        haste = tasks.create_task(hurry())
        cut = await drain.drain(timeout_s)
        haste.cancel()
    logger.info("drained", extra={"cut": cut})
    over.set()


def _start_failure(lifespans: Sequence[Lifespan], group: BaseException) -> str:
    for lifespan in lifespans:
        if lifespan.failure is not None:
            return f"cannot start: {lone_error(lifespan.failure)}"
    return f"cannot start: {lone_error(group)}"
