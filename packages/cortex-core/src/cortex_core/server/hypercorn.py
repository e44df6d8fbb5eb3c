"""Hypercorn, tamed: its settings, and the one part of it that is replaced.

Hypercorn starts and ends the app, listens, accepts, and goes down in good order. What a caller
says is read by `Connection` in place of Hypercorn's own classes: it makes one of those for each
connection, by the name that `take_over` sets. The function that does so is first compared with
the known one, so another Hypercorn stops the start instead of failing some night.
"""

import asyncio
import contextlib
import hashlib
import inspect
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio import run
from hypercorn.config import Config, Sockets
from starlette.types import ASGIApp

from cortex_core.errors import CortexError
from cortex_core.server.connection import Connection

BACKLOG = 4096
"""Connections that wait to be accepted. With Hypercorn's 100, two thousand callers who come at
once wait seconds (SYN retries); with this they are all in within 0.1 s."""

PUBLIC_KEEP_ALIVE_S = 5.0
NEURON_KEEP_ALIVE_S = 75.0
"""Above the gateway's 30 s, so that the gateway is the one to close an idle connection."""

# The text of `worker_serve` in Hypercorn 0.18.0.
_KNOWN = "ae30269c42b95442"
# More than a stream reader holds before it stops reading.
_EARLY_BYTES = 1 << 20


class HypercornChangedError(CortexError):
    """The installed Hypercorn is not the one that is known."""


class TamedConfig(Config):
    """Hypercorn's settings, the one socket to listen on, and the connections that came in.

    Args:
        sock: to listen on; `None` when somebody else accepts.
        flush_timeout_s: see the attribute.
    """

    def __init__(self, sock: socket.socket | None, flush_timeout_s: float) -> None:
        self.sock = sock
        self.flush_timeout_s = flush_timeout_s
        """How long what was written may take to reach a caller after the connection's end."""
        self.connections: set[Connection] = set()
        self.is_ending = False

    def create_sockets(self) -> Sockets:
        """Give Hypercorn our socket, which it closes at its end."""
        return Sockets([], [] if self.sock is None else [self.sock], [])

    def end_connections(self) -> None:
        """Let each end with its running answer, and those that come now too."""
        self.is_ending = True
        for connection in tuple(self.connections):
            connection.end()


def tamed_config(
    sock: socket.socket | None,
    *,
    keep_alive_s: float,
    graceful_s: float = 5.0,
    flush_timeout_s: float = 30.0,
) -> TamedConfig:
    """Return settings for one listening socket.

    Args:
        sock: listens already; Hypercorn closes it. `None` when somebody else accepts.
        keep_alive_s: how long a connection may be idle; also how long a caller may take to
            send the head of its first request.
        graceful_s: how long connections may take to end after the drain.
        flush_timeout_s: how long what was written may take to reach a caller after the end.
    """
    config = TamedConfig(sock, flush_timeout_s)
    config.backlog = BACKLOG
    config.keep_alive_timeout = keep_alive_s
    config.graceful_timeout = graceful_s
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def take_over() -> None:
    """Let Hypercorn make our connections, once per process.

    Raises:
        HypercornChangedError: it does not make them in the known way.
    """
    check(run.worker_serve, _KNOWN)
    run.TCPServer = _serve_connection  # type: ignore[assignment,attr-defined]  # called and awaited alone


def check(function: Callable[..., Any], digest: str) -> None:
    """Raise `HypercornChangedError` unless the digest of a function's source text is `digest`."""
    found = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    if found != digest:
        raise HypercornChangedError(
            f"hypercorn's {function.__name__} is not the one that cortex knows; "
            "install hypercorn 0.18.0"
        )


async def _serve_connection(
    app: ASGIWrapper,
    loop: asyncio.AbstractEventLoop,
    config: TamedConfig,
    context: object,
    state: dict[str, Any],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Serve one connection until it is gone; stands in for Hypercorn's `TCPServer`."""

    async def begin(connection: Connection) -> None:
        writer.transport.set_protocol(connection)
        connection.connection_made(writer.transport)
        # Not before: whoever counts them asks for what they hold.
        config.connections.add(connection)
        await _hand_over(reader, connection)

    if writer.is_closing():
        return
    stream = writer.transport.get_protocol()
    try:
        # Typed more closely than Starlette's.
        await _serve_until_lost(app.app, config, state, begin)  # type: ignore[arg-type]  # see above
    finally:
        # It lets go of reader and writer, which are a circle with it and this task.
        stream.connection_lost(None)


async def serve_accepted(app: ASGIApp, config: TamedConfig, sock: socket.socket) -> None:
    """Serve a connection that somebody else has accepted until it is gone.

    Raises:
        OSError: it is gone already.
    """

    async def begin(connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: connection, sock)
        config.connections.add(connection)

    await _serve_until_lost(app, config, {}, begin)


async def _serve_until_lost(
    app: ASGIApp,
    config: TamedConfig,
    state: dict[str, Any],
    begin: Callable[[Connection], Awaitable[None]],
) -> None:
    connection = Connection(
        app,
        state,
        keep_alive_s=config.keep_alive_timeout,
        flush_timeout_s=config.flush_timeout_s,
    )
    try:
        await begin(connection)
        if config.is_ending:
            connection.end()
        await connection.serve()
    except asyncio.CancelledError:
        if connection in config.connections:
            connection.abort()
        raise
    finally:
        config.connections.discard(connection)


async def _hand_over(reader: asyncio.StreamReader, connection: Connection) -> None:
    """Give the connection what came while it was the reader's."""
    data = b""
    with contextlib.suppress(TimeoutError):
        # Does not wait at all if there is something.
        async with asyncio.timeout(0):
            data = await reader.read(_EARLY_BYTES)
    if data:
        connection.data_received(data)
    if reader.at_eof():
        connection.eof_received()
