"""One connection to a node: a request out, its answer in, and on to the next."""

import asyncio
from collections.abc import Sequence
from typing import Protocol, cast

from cortex_core.routing.retry import Failure
from cortex_core.server.deadline import Deadline
from cortex_core.server.transport import reset
from cortex_gateway.clients.answer import Answer
from cortex_gateway.clients.heads import (
    Body,
    Head,
    MalformedAnswerError,
    body_of,
    end_of_head,
    parse_head,
)
from cortex_gateway.ports import UpstreamFailure

_PIECE_BYTES = 256 * 1024
"""What of a large request is handed to the transport at once."""

_TURN_PIECES = 2
"""What is handed over before the others have a turn."""

_CLOCKS_DIFFER_S = 1.0
"""How much sooner than a node says its connections are left alone."""


class Owner(Protocol):
    """Whoever is told what becomes of a connection."""

    def keep(self, connection: "Connection") -> None:
        """Take note that it may be used again."""

    def leave(self, connection: "Connection") -> None:
        """Take note that it may not."""

    def lose(self, connection: "Connection") -> None:
        """Take note that it is gone."""


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 to one node, a request at a time.

    Args:
        owner: told what becomes of it.
        keep_alive_s: how long it may be idle.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_buffer",
        "_deadline",
        "_idle_s",
        "_is_paused",
        "_is_writable",
        "_keep_alive_s",
        "_loop",
        "_owner",
        "_reuse_s",
        "_scanned",
        "_transport",
        "_unsent",
        "_waiter",
        "is_open",
    )

    def __init__(self, owner: Owner, keep_alive_s: float) -> None:
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._keep_alive_s = keep_alive_s
        self._owner = owner
        self._deadline = Deadline(self._loop)
        # Of the request under way.
        self._waiter: asyncio.Future[Answer] | None = None
        self._unsent: list[memoryview] = []
        """Pieces of its body, the last one first."""
        self._is_writable = True
        # Of its answer.
        self._buffer = bytearray()
        self._scanned = 0
        self._body: Body | None = None
        self._answer: Answer | None = None
        self._idle_s = 0.0
        self._reuse_s = 0.0
        self._is_paused = False

    async def ask(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        *,
        first_byte_s: float,
        idle_s: float,
    ) -> Answer:
        """Send a request and return its answer once the head is there.

        Being cancelled resets the connection.

        Raises:
            UpstreamFailure: no answer began.
        """
        self._idle_s = idle_s
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._deadline.set(first_byte_s, self._too_late)
        if sum(map(len, body)) <= _PIECE_BYTES:
            self._transport.write(b"".join((head, *body)))
        else:
            self._transport.write(head)
            self._unsent = _cut_up(body)
            self._send_on()
        try:
            return await waiter
        except BaseException:
            # It may have begun before the cancellation, and even have ended: then the
            # connection is another's already.
            if not waiter.done() or waiter.cancelled():
                self.abort()
            elif waiter.exception() is None:
                waiter.result().close()
            raise

    def expect(self, seconds: float | None = None) -> None:
        """Count the node's silence from now on; so much of it is borne, or as much as was asked."""
        self._deadline.set(self._idle_s if seconds is None else seconds, self._too_late)

    def pause(self) -> None:
        """Read no further until `resume`."""
        if not self._is_paused and self.is_open:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on; the time until now was no silence of the node."""
        if self._is_paused and self.is_open:
            self._is_paused = False
            self._deadline.at = self._loop.time() + self._idle_s
            self._transport.resume_reading()

    def close(self) -> None:
        """Close in good order: nothing is under way."""
        if self.is_open:
            self._leave()
            self._transport.close()

    def drop(self) -> None:
        """Reset the connection, and tell whoever waits for something on it."""
        self._fail(_cut(self._body), "the connections to nodes are closed")

    def abort(self) -> None:
        """Reset the connection, so that the node stops working at once."""
        self._waiter = self._body = self._answer = None
        if self.is_open:
            self._leave()
            reset(self._transport)

    def _leave(self) -> None:
        self.is_open = False
        self._owner.leave(self)

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # Of TCP or TLS; uvloop's is a class of its own.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if not self.is_open:
            return
        try:
            if self._body is not None:
                self._deadline.at = self._loop.time() + self._idle_s
                self._take(data)
            elif self._waiter is not None:
                self._take_head(data)
            else:
                # Nobody has asked anything.
                self.abort()
        except MalformedAnswerError as error:
            is_begun = self._body is not None
            self._fail(Failure.CUT_MID_ANSWER if is_begun else Failure.BAD_ANSWER, str(error))

    def eof_received(self) -> None:
        """Take the end of what the node sends for the end of the connection."""
        self._lose("the node ended the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._leave()
        if exc is not None:
            # Never the good end of a body, whatever it looks like.
            self._fail(_cut(self._body), f"the connection broke: {exc}")
        self._lose("the connection was closed")
        self._deadline.end()
        self._owner.lose(self)

    def pause_writing(self) -> None:
        """Send no more for now."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """Send on."""
        self._is_writable = True
        self._send_on()

    def _send_on(self) -> None:
        """Write as much of the request as is taken, in pieces: TLS copies what it is given."""
        left = _TURN_PIECES
        while self._unsent and self._is_writable and self.is_open:
            if not left:
                # A node that reads as fast takes megabytes in one go; others wait meanwhile.
                self._loop.call_soon(self._send_on)
                return
            left -= 1
            self._transport.write(self._unsent.pop())

    # Answers.

    def _take_head(self, data: bytes) -> None:
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
            self._buffer.clear()
        while data:
            end = end_of_head(data, self._scanned)
            if end < 0:
                self._scanned = len(data)
                self._buffer += data
                return
            self._scanned = 0
            head, data = parse_head(data[:end]), data[end:]
            if head.status >= 200:
                self._begin(head, data)
                return
            if head.status == 101:
                raise MalformedAnswerError("nobody asked for another protocol")

    def _begin(self, head: Head, rest: bytes) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            # It was cancelled, which its task will see in a moment.
            return
        self._body = body_of(head)
        self._answer = Answer(self, head, self._loop)
        self._reuse_s = _reuse_s(head, self._keep_alive_s)
        # Where it comes sooner than what was set, whoever waits for a piece sets it anew.
        self._deadline.at = self._loop.time() + self._idle_s
        waiter.set_result(self._answer)
        self._take(rest)

    def _take(self, data: bytes) -> None:
        body, answer = self._body, self._answer
        assert body is not None
        assert answer is not None
        if piece := body.feed(data):
            answer.give(piece)
        # Whoever was given it may have closed the answer.
        if body.is_done and self._body is body:
            self._complete(body, answer)

    def _complete(self, body: Body, answer: Answer) -> None:
        """Let go of an answer that has ended, and be there for another one."""
        self._body = self._answer = None
        answer.finish()
        if self._unsent or not self._is_writable:
            # An early answer, such as one to a request that is too large.
            self.abort()
        elif body.rest or self._reuse_s <= 0:
            self.close()
        elif self.is_open:
            self.resume()
            self._deadline.set(self._reuse_s, self._too_late)
            self._owner.keep(self)

    def _lose(self, reason: str) -> None:
        body, answer = self._body, self._answer
        if body is not None and answer is not None and body.end():
            self._complete(body, answer)
        self._fail(_cut(body), reason)

    def _fail(self, failure: Failure, reason: str) -> None:
        waiter, answer = self._waiter, self._answer
        self.abort()
        if answer is not None:
            answer.fail(UpstreamFailure(failure, reason))
        elif waiter is not None and not waiter.done():
            waiter.set_exception(UpstreamFailure(failure, reason))

    # Time.

    def _too_late(self) -> None:
        if not self.is_open:
            return
        if self._waiter is not None:
            self._fail(Failure.TIMEOUT, "no answer began in time")
        elif self._answer is None:
            self.close()
        elif self._is_paused or not self._answer.is_waited_for:
            # It is not the node that takes its time.
            self._deadline.set(self._idle_s, self._too_late)
        else:
            self._fail(Failure.TIMEOUT, "silent within its answer")


def _cut_up(body: Sequence[bytes | memoryview]) -> list[memoryview]:
    """Return a body in pieces that are handed to a transport at once, the last one first."""
    return [
        view[start : start + _PIECE_BYTES]
        for view in [memoryview(piece) for piece in body]
        for start in range(0, len(view), _PIECE_BYTES)
    ][::-1]


def _cut(body: Body | None) -> Failure:
    return Failure.CUT_BEFORE_ANSWER if body is None else Failure.CUT_MID_ANSWER


def _reuse_s(head: Head, keep_alive_s: float) -> float:
    """Return how long the connection may be idle after this answer, at most 0 for not at all."""
    if head.is_last or (head.length is None and not head.is_chunked):
        return 0.0
    if head.keep_alive_s is None:
        return keep_alive_s
    return min(keep_alive_s, head.keep_alive_s - _CLOCKS_DIFFER_S)
