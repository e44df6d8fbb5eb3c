"""One caller's connection: bytes in, requests to the app one after another, bytes out."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

from cortex_core.errors import RequestError
from cortex_core.server.clock import HttpDate
from cortex_core.server.deadline import Deadline
from cortex_core.server.heads import Heads
from cortex_core.server.http1 import (
    Answer,
    AnswerError,
    Chunks,
    Request,
    end_of_head,
    target_of,
)
from cortex_core.server.seam import CONNECTION_KEY, WHOLE_KEY, Listener
from cortex_core.server.transport import Tap, address_of, reset

logger = logging.getLogger(__name__)

_PIPELINED_BYTES = 64 * 1024
"""What is read of further requests while one is answered."""

_EARLY_BODY_BYTES = 1 << 20
"""What is read of a request's body before there is anybody to take it and to bound it."""

_FULL_READ_BYTES = 128 * 1024
"""More than that at once, and there is more to read: uvloop's buffer has twice the size."""

_LAST_LOOK_S = 0.001
"""Long enough for sockets to be looked at once."""

_CONTINUE = b"HTTP/1.1 100 \r\n\r\n"
_FAILED = b"HTTP/1.1 500 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(asyncio.Protocol):
    """Reads requests, and gives each to the app when its turn has come.

    Only HTTP/1 is spoken, and no upgrade is taken. A caller that closes or half-closes has left.

    Args:
        app: gets the requests; it must stand behind the guard.
        state: of the app's lifespan.
        keep_alive_s: how long the connection may be idle, and a head may take.
        flush_timeout_s: how long what was written may take to reach the caller after the end.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: Mapping[str, Any],
        *,
        keep_alive_s: float,
        flush_timeout_s: float,
    ) -> None:
        self.refusal: RequestError | None = None
        """Why the request that is being served must not run."""
        self.request: Request
        """The one that is being served, or was last."""
        self.is_lost = False
        self._app = app
        self._state = state
        self._keep_alive_s = keep_alive_s
        self._flush_timeout_s = flush_timeout_s
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._tap: Tap
        self._deadline = Deadline(self.loop)
        self._is_writable = asyncio.Event()
        self._is_writable.set()
        self._is_closing = self._is_ending = self._is_deaf = False
        self._buffer = bytearray()
        self._scanned = 0
        self._held = b""
        """The head of an answer, which waits a moment for what follows: one write is cheaper."""
        # Of the request that is being served.
        self._scope: Scope | None = None
        self._next: Scope | None = None
        """The same, until the app gets it."""
        self._waiter: asyncio.Future[None] | None = None
        self._answer: Answer
        self._listener: Listener | None = None
        self._left = 0
        self._chunks: Chunks | None = None
        self.is_asked = False
        """Whether the caller wants to hear first that its body is wanted."""

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not reached the kernel; read from any thread."""
        return self._transport.get_write_buffer_size()

    @property
    def body_bytes(self) -> int:
        """What there is of the body of the request that is being served; read from any thread."""
        listener = self._listener
        return 0 if listener is None else listener.body_bytes

    def listen(self, listener: Listener) -> None:
        """Tell `listener` what comes of the request that is being served."""
        self._listener = listener
        if self._is_closing:
            listener.leave()
        else:
            self._tap.open()
            self._advance()

    def invite(self) -> None:
        """Tell a caller that has asked that the body of its request is wanted."""
        self.is_asked = False
        if not (self._is_closing or self._answer.is_started):
            self._transport.write(_CONTINUE)

    def end(self) -> None:
        """Close when the running request, if there is one, has its answer."""
        self._is_ending = True
        if self._scope is None:
            self._close()
        else:
            self._answer.is_last = True

    def abort(self) -> None:
        """Reset the connection; what was not sent is forgotten, by the kernel too."""
        self._is_closing = True
        reset(self._transport)

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # Of TCP; uvloop's is a class of its own.
        self._transport = cast(asyncio.Transport, transport)
        self._tap = Tap(self._transport, self.loop)
        self._peers = {
            "client": address_of(self._transport, "peername"),
            "server": address_of(self._transport, "sockname"),
        }
        self._deadline.set(self._keep_alive_s, self._look_again)

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self._is_closing or self._is_deaf:
            return
        if self._listener is not None and not self._buffer and len(data) <= self._left:
            self._left -= len(data)
            self._listener.take(data, is_end=not self._left)
        else:
            self._buffer += data
            self._advance()
        if len(data) >= _FULL_READ_BYTES and (self._left or self._chunks is not None):
            self._tap.give_way()

    def eof_received(self) -> bool:
        """Take the end of what the caller sends for the end of the connection."""
        if self.refusal is None:
            self._close()
            self._leave()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._is_closing = True
        self._buffer.clear()
        self._deadline.end()
        self._is_writable.set()
        self._leave()
        self._scope = self._next = None
        self.is_lost = True
        self._wake()

    def pause_writing(self) -> None:
        """Let senders wait."""
        self._is_writable.clear()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._is_writable.set()
        if self._listener is not None:
            self._listener.go_on()

    # Requests.

    def _advance(self) -> None:
        """Go through what has come, as far as it can be used now."""
        try:
            while self._buffer and (self._serve_next() if self._scope is None else self._read_on()):
                pass
        except RequestError as error:
            self._refuse(error)

    def _serve_next(self) -> bool:
        """Serve the request at the front of the buffer; return whether its head was there."""
        end = end_of_head(self._buffer, self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            return False
        request = _heads.read(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        self._serve(request)
        return True

    def _read_on(self) -> bool:
        """Read what follows a head; return whether there may be more to do."""
        if self._listener is None:
            if len(self._buffer) >= _EARLY_BODY_BYTES:
                self._tap.shut()
            return False
        if self._left:
            data = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._left -= len(data)
            self._listener.take(data, is_end=not self._left)
            return True
        if self._chunks is not None:
            data = self._chunks.feed(self._buffer)
            is_end = self._chunks.is_done
            if is_end:
                self._chunks = None
            if data or is_end:
                self._listener.take(data, is_end=is_end)
            return is_end
        # Of a further request. What is not read does not say that it has ended.
        if len(self._buffer) >= _PIPELINED_BYTES:
            self._tap.shut()
        return False

    def _refuse(self, error: RequestError) -> None:
        """Answer with `error`, and read no further."""
        if self._scope is None:
            self.refusal = error
            method, target = target_of(bytes(self._buffer))
            # Without headers, of which none can be trusted.
            self._serve(Request(method=method, target=target, version="1.1", headers=[]))
        else:
            self._left, self._chunks = 0, None
            assert self._listener is not None
            self._listener.fail(error)
        self._answer.is_last = True
        self._is_deaf = True
        self._buffer.clear()

    def _serve(self, request: Request) -> None:
        self._deadline.lift()
        self._scanned = 0
        self.request = request
        path, _, query = request.target.partition(b"?")
        self._scope = {
            "type": "http",
            "http_version": request.version,
            "asgi": {"version": "3.0"},
            "method": request.method,
            "scheme": "http",
            "path": unquote(path.decode()) if b"%" in path else path.decode(),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "state": {**self._state, CONNECTION_KEY: self},
            "extensions": {},
            **self._peers,
        }
        self._answer = Answer(
            request.method, request.version, is_last=request.is_last or self._is_ending
        )
        self._left = request.length or 0
        self._chunks = Chunks() if request.length is None else None
        self.is_asked = request.wants_continue and request.length != 0
        self._next = self._scope
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def serve(self) -> None:
        """Give the requests to the app, one after another, until the connection is lost.

        In one task for all of them: to make one for each costs more than to wake one.
        """
        while not self.is_lost:
            scope, self._next = self._next, None
            if scope is None:
                self._waiter = self.loop.create_future()
                await self._waiter
            else:
                await self._run(scope)

    async def _run(self, scope: Scope) -> None:
        try:
            await self._app(scope, _receive, self._send)
        except asyncio.CancelledError:
            task = asyncio.current_task(self.loop)
            if task is None or task.cancelling():
                raise
            logger.exception("the app waited for something that was cancelled")
        except Exception:
            logger.exception("the app failed")
        finally:
            # Another request is served already, if the answer was complete.
            if self._scope is scope and not self._is_closing:
                if not self._answer.is_started:
                    self._transport.write(_FAILED)
                self._close()

    # Answers.

    async def _send(self, message: Message) -> None:
        """Write what the app says, and wait if the caller reads slowly.

        Raises:
            AnswerError: it is not what can be said now.
        """
        if self._is_closing:
            return
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            self._held = self._answer.head(message["status"], headers, _date.text())
            body, is_last = message.get(WHOLE_KEY), True
            if body is None:
                self.loop.call_soon(self._flush)
                return
        elif message["type"] == "http.response.body":
            body, is_last = message.get("body", b""), not message.get("more_body", False)
        else:
            raise AnswerError(f"{message['type']} is no part of an answer")
        if not self.write(body, is_last=is_last):
            await self._is_writable.wait()
        if self._answer.is_complete and not self._is_closing:
            self._turn()

    def write(self, body: bytes, *, is_last: bool = False) -> bool:
        """Write a piece of the answer's body.

        Returns:
            Whether more may be written; if not, the listener is told when it may.

        Raises:
            AnswerError: it is not what can be said now.
        """
        if self._is_closing:
            return True
        data = self._answer.piece(body, is_last=is_last)
        data, self._held = self._held + data, b""
        if data:
            self._transport.write(data)
        return self._is_writable.is_set()

    def _flush(self) -> None:
        data, self._held = self._held, b""
        if data and not self._is_closing:
            self._transport.write(data)

    def _turn(self) -> None:
        """Go on to the next request, or close."""
        is_last = self._answer.is_last or self._left or self._chunks is not None
        if is_last:
            self._close()
        self._leave()
        self._scope = None
        if is_last:
            return
        self._deadline.set(self._keep_alive_s, self._look_again)
        self._tap.open()
        self._advance()

    def _leave(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.leave()

    def _close(self) -> None:
        """Close when everything was sent, or drop it if that takes too long."""
        if not self._is_closing:
            self._flush()
            self._is_closing = True
            self._buffer.clear()
            self._deadline.set(self._flush_timeout_s, self.abort)
            self._transport.close()

    def _look_again(self) -> None:
        """Close the idle connection, unless something has come already."""
        # After a loop stood still, libuv tells that the time is up before it reads.
        self._deadline.set(_LAST_LOOK_S, self._close)


async def _receive() -> Message:
    """Stand in for what the guard does better: see `Connection.listen`."""
    raise RuntimeError("what is served must stand behind the guard")


_date = HttpDate()
_heads = Heads()
