"""Hypercorn, tamed: its settings, and the repairs that it needs.

Each repair replaces one method. `apply_repairs` first compares the methods that it replaces with
the ones it was written for, so another Hypercorn stops the start instead of failing some night.
The texts of these methods are the same in Hypercorn 0.18.0 and in its main branch of November
2025.
"""

import asyncio
import contextlib
import hashlib
import inspect
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from cortex_core.errors import CortexError
from cortex_core.server.guard import CONNECTION_KEY

BACKLOG = 4096
"""Connections that wait to be accepted. With Hypercorn's 100, two thousand callers who come at
once wait seconds (SYN retries); with this they are all in within 0.1 s."""

_PIPELINED_BYTES = 64 * 1024
"""What is read of further requests while one is answered."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""`struct linger`: on, and wait for nothing (socket(7))."""

PUBLIC_KEEP_ALIVE_S = 5.0
NEURON_KEEP_ALIVE_S = 75.0
"""Above the gateway's 30 s, so that the gateway is the one to close an idle connection."""


class TamedConfig(Config):
    """Hypercorn's settings, and the one socket to listen on."""

    def __init__(self, sock: socket.socket, flush_timeout_s: float) -> None:
        self.sock = sock
        self.flush_timeout_s = flush_timeout_s
        """How long what was written may take to reach a caller after the connection's end."""

    def create_sockets(self) -> Sockets:
        """Give Hypercorn our socket, which it closes at its end."""
        return Sockets([], [self.sock], [])


class HypercornChangedError(CortexError):
    """The installed Hypercorn is not the one that the repairs were written for."""


def tamed_config(
    sock: socket.socket,
    *,
    keep_alive_s: float,
    graceful_s: float = 5.0,
    flush_timeout_s: float = 30.0,
) -> TamedConfig:
    """Return settings for one listening socket.

    Args:
        sock: listens already; Hypercorn closes it.
        keep_alive_s: how long a connection may be idle; also how long a caller may take to
            send the head of its first request.
        graceful_s: how long connections may take to end after the drain.
        flush_timeout_s: how long what was written may take to reach a caller after the end.
    """
    config = TamedConfig(sock, flush_timeout_s)
    config.backlog = BACKLOG
    config.keep_alive_timeout = keep_alive_s
    config.keep_alive_max_requests = 10**9
    config.graceful_timeout = graceful_s
    config.ssl_handshake_timeout = 5.0
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    # It would kill live streams; the guard times bodies, and the idle timer heads.
    config.read_timeout = None
    # Unbounded: a full queue stops the reader, which then sees no disconnect, and hangs the
    # answer's last `send`. The guard reads all the time and holds the bound.
    config.max_app_queue_size = 0
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def apply_repairs() -> None:
    """Put the repairs in place, once per process.

    Raises:
        HypercornChangedError: a method to be replaced is not the known one.
    """
    for repair in _REPAIRS:
        repair.check()
    for repair in _REPAIRS:
        setattr(repair.owner, repair.name, repair.new)


class Repair:
    """One method and what takes its place."""

    def __init__(self, *, owner: type, name: str, digest: str, new: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self.digest = digest
        self.new = new

    def check(self) -> None:
        """Raise unless the method is the known one, or replaced already."""
        current = getattr(self.owner, self.name, None)
        if current is self.new:
            return
        if current is None or source_digest(current) != self.digest:
            raise HypercornChangedError(
                f"hypercorn's {self.owner.__name__}.{self.name} is not the one that cortex "
                "knows how to repair; install hypercorn 0.18.0"
            )


def source_digest(function: Callable[..., Any]) -> str:
    """Return a short digest of a function's source text."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


class _Droppable:
    """What the guard gets of a connection."""

    __slots__ = ("_writer",)

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def abort(self) -> None:
        """Reset the connection; what was not sent is forgotten, by the kernel too."""
        connection = self._writer.get_extra_info("socket")
        # A transport's `abort` alone ends with a FIN, as a complete answer would.
        # A socket that is closed already has no descriptor to set it on.
        with contextlib.suppress(OSError, ValueError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()


async def _run_connection(self: TCPServer) -> None:
    """Serve one connection; replaces `TCPServer.run`.

    Should end when the caller has closed and the app is through. Does end only when the idle
    timer fires, and the socket stays in CLOSE-WAIT until then. Also hands the transport to the
    guard, which ASGI has no door for.
    """
    sock = self.writer.get_extra_info("socket")
    try:
        client = parse_socket_addr(sock.family, sock.getpeername())
        server = parse_socket_addr(sock.family, sock.getsockname())
        is_tls = self.writer.get_extra_info("ssl_object") is not None
        state = ConnectionState({**self.state, CONNECTION_KEY: _Droppable(self.writer)})
        async with TaskGroup(self.loop) as task_group:
            self._task_group = task_group
            self.protocol = ProtocolWrapper(
                self.app, self.config, self.context, task_group, state, is_tls,
                client, server, self.protocol_send, "http/1.1",
            )  # fmt: skip
            self.protocol.protocol.cortex_reader = self.reader  # type: ignore[union-attr]
            await self.protocol.initiate()
            await self.idle_task.restart(task_group, self._idle_timeout)
            await self._read_data()
            await self.idle_task.stop()
    except OSError:
        return
    finally:
        await self._close()


async def _close_connection(self: TCPServer) -> None:
    """Close, or drop what cannot be closed; replaces `TCPServer._close`.

    Should be bounded. Is not: it waits for a caller that reads nothing until the kernel gives
    up, and then lets a `TimeoutError` out, which is logged as our bug
    (https://github.com/pgjones/hypercorn/issues/202).
    """
    # Not after an abort: a FIN would overtake the reset.
    if not self.writer.is_closing():
        with contextlib.suppress(NotImplementedError, OSError, RuntimeError):
            self.writer.write_eof()
    timeout_s = self.config.flush_timeout_s if isinstance(self.config, TamedConfig) else None
    try:
        async with asyncio.timeout(timeout_s):
            self.writer.close()
            await self.writer.wait_closed()
    except (OSError, RuntimeError):
        # A closed connection has nothing left to abort; a stuck one is dropped.
        _Droppable(self.writer).abort()
    except asyncio.CancelledError:
        _Droppable(self.writer).abort()
        raise
    finally:
        await self.idle_task.stop()


async def _handle_connection_event(self: H11Protocol, event: Event) -> None:
    """Take bytes or the end of the connection; replaces `H11Protocol.handle`.

    Should let go of everything when the connection ends. Does leave the task that waits to parse
    a pipelined request waiting for ever.
    """
    if isinstance(event, RawData):
        self.connection.receive_data(event.data)
        await self._handle_events()
    elif isinstance(event, Closed):
        self.cortex_is_gone = True  # type: ignore[attr-defined]  # ours, beside theirs
        if self.stream is not None:
            await self._close_stream()
        await self.can_read.set()


async def _handle_parser_events(self: H11Protocol) -> None:
    """Go through what the parser has; replaces `H11Protocol._handle_events`."""
    while not getattr(self, "cortex_is_gone", False):
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(
                h11.InformationalResponse(
                    status_code=100, headers=self.config.response_headers("h11")
                )
            )
        try:
            event = self.connection.next_event()
        except h11.RemoteProtocolError as error:
            if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._send_error_response(error.error_status_hint)
            await self.send(Closed())
            return
        if isinstance(event, h11.Request):
            await _begin_request(self, event)
        elif event is h11.PAUSED:
            await _wait_for_turn(self)
        elif not await _passed_on(self, event):
            return


async def _wait_for_turn(self: H11Protocol) -> None:
    """Wait until the answer before a pipelined request is complete, or the caller has left.

    Should notice that. Does not read meanwhile, and so works on for somebody who is gone.
    """
    await self.can_read.clear()
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(_read_ahead(self, self.cortex_reader))  # type: ignore[attr-defined]
        await self.can_read.wait()
        watch.cancel()


async def _read_ahead(self: H11Protocol, reader: asyncio.StreamReader) -> None:
    """Keep what comes for later, within bounds, and see the end of the connection."""
    kept = 0
    data = b"-"
    while data and kept < _PIPELINED_BYTES:
        try:
            data = await reader.read(_PIPELINED_BYTES)
        except OSError:
            data = b""
        if data:
            self.connection.receive_data(data)
            kept += len(data)
    if not data:
        await self.handle(Closed())


async def _begin_request(self: H11Protocol, event: h11.Request) -> None:
    await self.send(Updated(idle=False))
    await self._check_protocol(event)
    await self._create_stream(event)


async def _passed_on(self: H11Protocol, event: Any) -> bool:
    """Give the stream what belongs to it; return whether there may be more."""
    if isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
        return False
    if isinstance(event, h11.Data):
        await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
    elif isinstance(event, h11.EndOfMessage):
        await self.stream.handle(EndBody(stream_id=STREAM_ID))
    else:
        await self.stream.handle(event)
    return True


async def _check_no_protocol(self: H11Protocol, event: h11.Request) -> None:
    """Stay with HTTP/1; replaces `H11Protocol._check_protocol`.

    Should be a setting. Is not: any caller may switch to HTTP/2, by an upgrade or by prior
    knowledge, where one bad frame ends all streams of a connection with an unhandled exception.
    """


_REPAIRS = (
    Repair(owner=TCPServer, name="run", digest="9437d01a916d887b", new=_run_connection),
    Repair(owner=TCPServer, name="_close", digest="ea76225e14315206", new=_close_connection),
    Repair(
        owner=H11Protocol, name="handle", digest="3b56e067447488df", new=_handle_connection_event
    ),
    Repair(
        owner=H11Protocol,
        name="_handle_events",
        digest="bd4a76b2837e8722",
        new=_handle_parser_events,
    ),
    Repair(
        owner=H11Protocol, name="_check_protocol", digest="f95f6b38f43c62aa", new=_check_no_protocol
    ),
)
