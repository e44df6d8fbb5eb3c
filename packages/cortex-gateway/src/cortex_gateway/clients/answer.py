"""An answer of a node, between the connection it comes on and whoever reads it."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from cortex_core.routing.retry import Failure
from cortex_gateway.clients.heads import Head
from cortex_gateway.ports import UpstreamFailure

READ_AHEAD_BYTES = 128 << 10
"""What is kept of an answer that nobody reads; then the node is not read, and the kernel pushes
back. It is passed by what one read of the socket gives."""


class Source(Protocol):
    """The connection, as an answer sees it."""

    def expect(self, seconds: float | None = None) -> None:
        """Count silence from now on; so much of it is borne, or as much as for others."""

    def pause(self) -> None:
        """Read no further."""

    def resume(self) -> None:
        """Read on."""

    def abort(self) -> None:
        """Reset the connection."""


class Answer:
    """`UpstreamAnswer` over a connection of ours.

    Args:
        source: where it comes from, until it has ended or failed.
        head: what has come of it.
    """

    __slots__ = (
        "_error",
        "_is_left",
        "_is_refused",
        "_loop",
        "_pieces",
        "_raised",
        "_size",
        "_source",
        "_take",
        "_waiter",
        "headers",
        "status",
    )

    def __init__(self, source: Source, head: Head, loop: asyncio.AbstractEventLoop) -> None:
        self.status = head.status
        self.headers = head.headers
        self._loop = loop
        self._source: Source | None = source
        self._error: BaseException | None = None
        """Why it has ended early; raised when all that came before is read."""
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._is_refused = False
        """Whether `take` wants no more for now."""
        self._is_left = False
        """Whether nobody wants more, and its end may still come."""
        self._raised: Exception | None = None
        """By `take`."""

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody would go on with the next bytes, if there were any."""
        return self._is_left or (self._waiter is not None and not self._is_refused)

    async def read(self) -> bytes:
        """Return what has come; see `UpstreamAnswer.read`."""
        if not self._pieces and self._source is not None:
            await self._wait()
        if not self._pieces and self._error is not None:
            raise self._error
        return self._taken()

    def rest(self) -> bytes | None:
        """Return the rest if it has come; see `UpstreamAnswer.rest`."""
        return self._taken() if self._source is None and self._error is None else None

    async def pass_to(self, take: Callable[[bytes], bool]) -> None:
        """Give the rest to `take`; see `UpstreamAnswer.pass_to`."""
        self._take, self._is_refused = take, False
        try:
            self._offer()
            while self._raised is None and (self._source is not None or self._pieces):
                await self._wait()
        finally:
            self._take = None
            self.resume()
        raised, self._raised = self._raised or self._error, None
        try:
            if raised is not None:
                raise raised
        finally:
            # Its traceback leads here: a circle, with all that the stream had.
            del raised

    def resume(self) -> None:
        """Offer `take` more; see `UpstreamAnswer.resume`."""
        if self._is_refused:
            self._is_refused = False
            self._offer()
            if self._source is None:
                self._wake()
            elif not self._is_refused:
                self._source.resume()

    def close(self, linger_s: float = 0.0) -> None:
        """Abort what has not ended; see `UpstreamAnswer.close`."""
        source = self._source
        if source is not None and linger_s and not self._pieces:
            self._is_left = True
            source.expect(linger_s)
        self._pieces.clear()
        if source is not None and not self._is_left:
            self.fail(UpstreamFailure(Failure.CUT_MID_ANSWER, "nobody reads it any more"))
            source.abort()

    # What the connection says.

    def give(self, piece: bytes) -> None:
        """Take a piece of the body, which is not empty."""
        if self._is_left:
            # More than its end.
            self._is_left = False
            self.close()
            return
        if self._take is not None and not self._is_refused:
            self._pass(self._take, piece)
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > READ_AHEAD_BYTES and self._source is not None:
            self._source.pause()
        self._wake()

    def finish(self) -> None:
        """Take note that this was all."""
        self._source = None
        self._wake()

    def fail(self, error: UpstreamFailure) -> None:
        """Take note that nothing more comes, though it should."""
        self._source, self._error = None, error
        self._wake()

    def _taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        if self._size > READ_AHEAD_BYTES and self._source is not None:
            self._source.resume()
        self._size = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _offer(self) -> None:
        if self._pieces and self._take is not None:
            self._pass(self._take, self._taken())

    def _pass(self, take: Callable[[bytes], bool], data: bytes) -> None:
        try:
            wants_more = take(data)
        except Exception as error:  # noqa: BLE001 - it is raised where `pass_to` is awaited
            self._take, self._raised = None, error
            self._wake()
            return
        if not wants_more:
            self._is_refused = True
            if self._source is not None:
                self._source.pause()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._source is not None:
            self._source.expect()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
