"""Responses that are made while nobody waits for them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, Self

from starlette.types import Message, Receive, Scope, Send

from cortex_core.errors import OverloadedError, RequestError
from cortex_core.ids import RequestId
from cortex_core.server.exchange import SCOPE_KEY, Cut
from cortex_core.server.seam import WHOLE_KEY
from cortex_core.sse import encode_comment
from cortex_core.wire.responses.answer import Response

logger = logging.getLogger(__name__)

MAX_FINISHED = 64
"""Runs whose events can still be read after their end; a response itself is kept elsewhere."""

KEEP_ALIVE_S = 5.0
"""Longest silence towards who reads the events of a run."""

Serve = Callable[[Scope, Receive, Send], Awaitable[None]]


class Growing(Protocol):
    """What grows: see `ResponsesAsked`."""

    @property
    def is_stream(self) -> bool:
        """Whether events are asked for."""
        ...

    @property
    def response(self) -> Response:
        """As far as it is known."""
        ...


class Unattended:
    """Stands in for the exchange of a request that has no connection.

    Args:
        request_id: of the request.
        take: gets what a caller would get after the head.
    """

    def __init__(self, request_id: RequestId, take: Callable[[bytes], None]) -> None:
        self.request_id = request_id
        self.memo: dict[str, Any] = {}
        self.cut: Cut | None = None
        self.on_writable: Callable[[], object] | None = None
        self._take = take

    def write(self, data: bytes) -> bool:
        """Take a piece of the answer, and more at any time."""
        self._take(data)
        return True


class Run:
    """One response in the making.

    Args:
        growing: the response.
    """

    def __init__(self, growing: Growing) -> None:
        self.growing = growing
        self.is_over = False
        self.is_begun = False
        self.is_stopped = False
        """Whether it is to end before it is complete."""
        self.is_cancelled = False
        """Whether somebody asked for its end."""
        self.is_stream = False
        """Whether events come; an error before the first is plain."""
        self.task: asyncio.Task[None] | None = None
        self.body = bytearray()
        """Of an answer that is no stream: a plain error, if the response did not come to be."""
        self._events: list[bytes] = []
        """Each at the place of its sequence number."""
        self._news = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Take what a caller would get."""
        if message["type"] == "http.response.start":
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
        if data := message.get(WHOLE_KEY) or message.get("body", b""):
            self.write(data)

    def write(self, data: bytes) -> None:
        """Take a piece of what a caller would get."""
        if not self.is_stream:
            self.body += data
            return
        self._take(data)
        self._wake()

    def cancel(self) -> None:
        """Stop it because somebody asked for its end; nothing when it is over."""
        self.is_cancelled = not self.is_over
        self.stop()

    def stop(self) -> None:
        """Stop it; nothing when it is over, or being stopped."""
        if self.is_over or self.is_stopped:
            return
        self.is_stopped = True
        # A task that is cancelled before its first step would never tell of its end.
        if self.is_begun and self.task is not None:
            self.task.cancel()

    async def ended(self) -> None:
        """Wait until it is over and kept."""
        while not self.is_over:
            await self._news.wait()

    def end(self, last: bytes = b"") -> None:
        """Note that nothing more will come than the events `last`."""
        if last:
            self._take(last)
        self.is_over = True
        self._wake()

    async def events(self, starting_after: int) -> AsyncIterator[bytes]:
        """Yield the events after a sequence number, as they come, to the end.

        Where none comes for long, comments show that the response is still being made.
        """
        position = max(0, starting_after + 1)
        while True:
            news = self._news
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.is_over:
                return
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await news.wait()
            except TimeoutError:
                yield encode_comment(f"the response is {self.growing.response.status}")

    def _take(self, data: bytes) -> None:
        # Events are written whole; comments have no number.
        self._events += [
            event + b"\n\n" for event in data.split(b"\n\n") if event and event[:1] != b":"
        ]

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Background:
    """Runs responses to their end, whoever leaves.

    Args:
        limit: how many may run at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._group = asyncio.TaskGroup()
        self._runs: dict[str, Run] = {}

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for run in self._runs.values():
            run.stop()
        await self._group.__aexit__(None, None, None)

    def find(self, response_id: str) -> Run | None:
        """Return the run that makes a response, or made it not long ago."""
        return self._runs.get(response_id)

    def drop(self, response_id: str) -> None:
        """Forget a run that is over, with its events."""
        self._runs.pop(response_id, None)

    def start(
        self,
        growing: Growing,
        serve: Serve,
        scope: Scope,
        body: bytes,
        end: Callable[[Run], Awaitable[bytes]],
    ) -> Run:
        """Begin to make a response.

        Args:
            growing: the response.
            serve: serves the request.
            scope: of the request that asked for it; its connection is not used.
            body: of the request.
            end: awaited when the run is over, also when it was cancelled; returns the events
                that are still missing.

        Raises:
            OverloadedError: too many are running.
        """
        if sum(not run.is_over for run in self._runs.values()) >= self._limit:
            raise OverloadedError("too many responses are being made in the background")
        run = Run(growing)
        self._runs[growing.response.id] = run
        lonely = {**scope, SCOPE_KEY: Unattended(scope[SCOPE_KEY].request_id, run.write)}
        run.task = self._group.create_task(self._run(run, serve, lonely, body, end))
        return run

    async def _run(
        self,
        run: Run,
        serve: Serve,
        scope: Scope,
        body: bytes,
        end: Callable[[Run], Awaitable[bytes]],
    ) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        run.is_begun = True
        try:
            if not run.is_stopped:
                with contextlib.suppress(asyncio.CancelledError):
                    await serve(scope, receive, run.send)
        finally:
            last = b""
            # One response that cannot be kept must not end the others, and the gateway.
            try:
                last = await end(run)
            except RequestError:
                logger.warning("the end of a background response could not be kept")
            finally:
                run.end(last)
                self._forget()

    def _forget(self) -> None:
        finished = [key for key, run in self._runs.items() if run.is_over]
        for key in finished[:-MAX_FINISHED]:
            del self._runs[key]
