"""One request and its answer: the body on its way in, the answer on its way out."""

import asyncio
import enum
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Scope, Send

from cortex_core.errors import RequestError, RequestTimeoutError
from cortex_core.ids import RequestId
from cortex_core.server.checks import body_too_large
from cortex_core.server.limits import Limits
from cortex_core.server.request_id import NAMES, response_headers
from cortex_core.server.seam import WHOLE_KEY, Connection

SCOPE_KEY = "cortex.exchange"

# Each piece of this size that a caller takes is timed by itself, so that a slow reader of a long
# answer is told from one that has stopped reading.
_PIECE_BYTES = 256 * 1024
# `send` does not suspend while the socket takes everything, and then nobody else would run,
# not even the task that would notice that the caller has left.
_SENDS_PER_TURN = 64


class Cut(enum.Enum):
    """Why a request was ended before its app was through."""

    CLIENT_GONE = "client_gone"
    """The caller closed or half-closed its connection."""
    STALLED = "stalled"
    """The caller stopped reading."""
    DRAIN = "drain"
    """The process goes down and the drain's time is up."""


class ClientGoneError(OSError):
    """There is nobody to send to; what Starlette takes for the end of a stream."""


class Exchange:
    """One request and its answer.

    Belongs to the guard; `exchange_of` finds it in the scope. Others read its state, and may
    call `cancel`.
    """

    __slots__ = (
        "_body",
        "_born",
        "_cancels",
        "_connection",
        "_discard_from",
        "_end_given",
        "_failure",
        "_has_body",
        "_is_gone",
        "_is_over",
        "_limits",
        "_loop",
        "_news",
        "_path",
        "_received",
        "_send",
        "_sending_since",
        "_sends",
        "_task",
        "_unsent",
        "cut",
        "is_complete",
        "is_last",
        "is_started",
        "on_writable",
        "request_id",
    )

    def __init__(
        self,
        *,
        limits: Limits,
        path: str,
        send: Send,
        has_body: bool,
        request_id: RequestId,
        connection: Connection,
    ) -> None:
        self.request_id = request_id
        self.cut: Cut | None = None
        """Why the app was cancelled, if it was."""
        self.is_started = False
        """The answer's head is out; an error must go into the stream."""
        self.is_complete = False
        """The answer's last byte was handed over."""
        self.is_last = False
        """The connection ends with this answer."""
        self.on_writable: Callable[[], object] | None = None
        """Called when more may be written, after `write` has asked for no more."""
        self._limits, self._path, self._send = limits, path, send
        self._connection, self._loop = connection, connection.loop
        self._task: asyncio.Task[object] | None = None
        self._born = self._loop.time()
        self._news: asyncio.Event | None = None
        """Made when somebody waits, which with most requests nobody does."""
        self._body: bytes | bytearray = b""
        self._has_body = has_body
        """The body has not been received to its end."""
        self._received, self._end_given = 0, False
        self._discard_from: int | None = None
        self._failure: RequestError | None = None
        self._is_gone = self._is_over = False
        self._cancels = self._sends = 0
        self._sending_since: float | None = None
        self._unsent = 0
        """The most that was left to be sent since then."""

    @property
    def memo(self) -> dict[str, Any]:
        """What was worked out from the head of the request; see `Heads`."""
        return self._connection.request.memo

    @property
    def body_bytes(self) -> int:
        """What was taken of the body, which the app has until it ends; 0 if nobody wants it."""
        is_wanted = self._failure is None and self._discard_from is None
        return self._received if is_wanted else 0

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run `app` to its end, or until the caller leaves, stalls, or the drain cuts it.

        The scope is not kept: it leads here, and a circle with each request would have the
        collector of cycles stop the process for some ms every thousand requests.
        """
        self._connection.listen(self)
        if self._is_gone:
            self.cut = self.cut or Cut.CLIENT_GONE
            return
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            # Ours if nobody else asked for it too: the server's own wish must go on.
            if task.cancelling() > self._cancels or not self._cancels:
                raise
        finally:
            self._is_over = True
            if self._cancels:
                await self._take_back(task)

    async def _take_back(self, task: asyncio.Task[object]) -> None:
        for _ in range(self._cancels):
            task.uncancel()
        self._cancels = 0
        # If the app ended before it saw it: up to Python 3.12 it is still raised at the next wait,
        # which may be one of another request.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task.cancelling():
                raise

    def cancel(self, reason: Cut) -> None:
        """Cancel the app, which finds the first `reason` in `cut`; too late is no matter."""
        if self._is_over or self._task is None:
            return
        if self.cut is None:
            self.cut = reason
        self._cancels += 1
        self._task.cancel()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._connection.abort()

    def check(self, now: float) -> None:
        """Find a caller that is too slow; called every now and then.

        Args:
            now: the loop's time.
        """
        limits = self._limits
        if self._sending_since is not None and now - self._taken_at(now) > limits.write_stall_s:
            self._sending_since = None
            self.cancel(Cut.STALLED)
            self.abort()
        if self._has_body and self._failure is None:
            age = now - self._born
            late = age - limits.body_grace_s
            wanted = late * limits.min_body_bytes_per_s
            if age > limits.body_timeout_s or (late > 0 and self._received < wanted):
                self._fail(RequestTimeoutError("the request body came too slowly"))

    def _taken_at(self, now: float) -> float:
        """Return when the caller was last known to take a piece of what is being sent."""
        assert self._sending_since is not None
        unsent = self._connection.unsent_bytes
        if self._unsent - unsent >= _PIECE_BYTES:
            self._sending_since, self._unsent = now, unsent
        self._unsent = max(self._unsent, unsent)
        return self._sending_since

    # What the app is given.

    async def receive(self) -> Message:
        """Give the app what has come of the body since the last call, or the disconnect.

        Raises:
            BodyTooLargeError: the body is over the limit.
            RequestTimeoutError: it came too slowly.
        """
        if self._connection.is_asked:
            self._connection.invite()
        while True:
            if self._failure is not None:
                raise self._failure
            if self._body or not (self._has_body or self._end_given):
                # A `bytearray` when it came in pieces; nobody else has it from here on.
                body, self._body = self._body, b""
                self._end_given = not self._has_body
                return {"type": "http.request", "body": body, "more_body": self._has_body}
            if self._is_gone:
                return {"type": "http.disconnect"}
            await self._wait()

    async def send(self, message: Message) -> None:
        """Pass the app's answer on.

        What begins an answer may have all of its body, under `WHOLE_KEY`: one step in place of
        two. Whoever stands between and changes headers need not know.

        Raises:
            ClientGoneError: nobody is there any more; raised after the others had a turn, so
                that an app which tries for ever does not stop the process.
        """
        self._sends += 1
        if self._is_gone or self.cut is Cut.STALLED:
            await asyncio.sleep(0)
            raise ClientGoneError("the caller has left")
        if not self._sends % _SENDS_PER_TURN:
            await asyncio.sleep(0)
        if message["type"] != "http.response.body":
            if self._has_body:
                # One that came along with the head is read by now, if the pump gets a turn.
                await asyncio.sleep(0)
            await self._start(message)
        elif not message.get("more_body", False):
            await self._finish(message)
        else:
            await self._pass(message)

    def _start(self, message: Message) -> Awaitable[None]:
        headers = [pair for pair in message.get("headers", ()) if pair[0].lower() not in NAMES]
        headers += response_headers(self.request_id, self._path)
        # The server below closes after a body that was not read to its end: say so. Only then,
        # for it costs the caller a new connection.
        if self._has_body or self.is_last:
            headers.append((b"connection", b"close"))
        self.is_started = True
        begin = {"type": message["type"], "status": message["status"], "headers": headers}
        body = message.get(WHOLE_KEY)
        if body is not None and self._has_body:
            return self._start_and_finish(begin, body)
        if body is not None:
            self.is_complete = True
            begin[WHOLE_KEY] = body
        return self._pass(begin)

    async def _start_and_finish(self, begin: Message, body: bytes) -> None:
        await self._pass(begin)
        await self._finish({"type": "http.response.body", "body": body})

    async def _finish(self, message: Message) -> None:
        if self._has_body:
            await self._pass({**message, "more_body": True})
            # Closing while the caller still sends resets the connection (RFC 9112, section
            # 9.6), and the caller may never see the answer.
            await self._discard()
            message = {"type": "http.response.body", "body": b""}
        self.is_complete = True
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        self._sending_since = self._loop.time()
        self._unsent = 0
        await self._send(message)
        self._sending_since = None

    def write(self, data: bytes) -> bool:
        """Pass a piece of an answer on whose head is out; for who is called with each piece.

        Unlike `send` it never waits, so that no task need be woken for a piece.

        Returns:
            Whether the caller's side takes more; if not, `on_writable` is called when it does.

        Raises:
            ClientGoneError: nobody is there any more.
        """
        if self._is_gone or self.cut is Cut.STALLED:
            raise ClientGoneError("the caller has left")
        if self._connection.write(data):
            return True
        self._sending_since = self._loop.time()
        self._unsent = 0
        return False

    # What comes from the connection.

    def take(self, data: bytes, *, is_end: bool) -> None:
        """Take a piece of the body; the app gets it when it asks, within the limit."""
        self._has_body = not is_end
        self._received += len(data)
        self._wake()
        if self._failure is not None or self._discard_from is not None:
            return
        if self._received > self._limits.max_body_bytes:
            self._fail(body_too_large(self._limits.max_body_bytes))
        elif not self._body:
            self._body = data
        else:
            # Joined: a million pieces of one byte must not cost a million objects.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data

    def fail(self, error: RequestError) -> None:
        """Give up a body that is malformed; the connection ends with the answer."""
        self._has_body = False
        self.is_last = True
        if self._failure is None:
            self._fail(error)

    def leave(self) -> None:
        """Cancel the app, unless its answer is complete."""
        self._is_gone = True
        self._wake()
        if not self.is_complete:
            self.cancel(Cut.CLIENT_GONE)

    def go_on(self) -> None:
        """Let whoever writes without waiting write again."""
        if self.on_writable is not None:
            self._sending_since = None
            self.on_writable()

    def _fail(self, error: RequestError) -> None:
        self._failure = error
        self._body = b""
        self._wake()

    async def _wait(self) -> None:
        """Wait for news of the connection."""
        if self._news is None:
            self._news = asyncio.Event()
        self._news.clear()
        await self._news.wait()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    async def _discard(self) -> None:
        """Read what is left of the body, within bounds."""
        self._body = b""
        self._discard_from = self._received
        try:
            async with asyncio.timeout(self._limits.discard_s):
                while self._has_body and not self._is_gone:
                    if self._received - self._discard_from > self._limits.discard_bytes:
                        return
                    await self._wait()
        except TimeoutError:
            return


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of an HTTP scope that came through the guard."""
    exchange: Exchange = scope[SCOPE_KEY]
    return exchange


def request_id_of(scope: Scope) -> RequestId:
    """Return the id of the request of an HTTP scope that came through the guard."""
    return exchange_of(scope).request_id
