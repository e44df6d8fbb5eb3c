"""The answer to one caller as it grows: head, heartbeats, content, and an end of some kind."""

from collections.abc import Callable, Iterable
from typing import Protocol

from starlette.types import Scope, Send

from cortex_core.errors import RequestError
from cortex_core.ids import RequestId
from cortex_core.server.failures import rendered
from cortex_core.server.seam import WHOLE_KEY
from cortex_core.sse import encode_comment
from cortex_gateway.proxy.asked import EVENT_STREAM

_START = "http.response.start"

_STREAM_HEADERS = (
    ("cache-control", "no-cache"),
    # Tells nginx and those who copied it not to collect the stream.
    ("x-accel-buffering", "no"),
)


class Pipe(Protocol):
    """Where bytes go on without a wait: `cortex_core.server.exchange.Exchange` is one."""

    request_id: RequestId
    on_writable: Callable[[], object] | None
    """Called when more may be written, after `write` has asked for no more."""

    def write(self, data: bytes) -> bool:
        """Write a piece of an answer whose head is out; False asks for no more."""


class Reply:
    """Owns `send` of one request, and knows how far its answer is.

    The guard around the application adds the request's id to the head.
    """

    def __init__(self, send: Send, scope: Scope, pipe: Pipe) -> None:
        self.request_id = pipe.request_id
        self.stream_type = EVENT_STREAM
        """`content-type` of the answer, should it be a stream."""
        self.failed: Callable[[RequestError], bytes] = lambda error: b""
        """Returns what ends a stream that was begun; set before one is."""
        self.status = 0
        """Status that was sent; 0 before the head."""
        self.is_stream = False
        """Whether the head said that events follow."""
        self.has_content = False
        """Whether a byte of a node's answer was sent; heartbeats do not count."""
        self.is_complete = False
        self._send = send
        self._scope = scope
        self._pipe = pipe

    async def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head of an answer that comes in pieces."""
        self.status = status
        await self._send({"type": _START, "status": status, "headers": _encoded(headers)})

    async def begin_stream(self, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head of an event stream; nothing when it was sent."""
        if not self.status:
            self.is_stream = True
            kind = ("content-type", self.stream_type)
            await self.begin(200, (kind, *_STREAM_HEADERS, *headers))

    async def comment(self, text: str) -> None:
        """Show a streaming caller that it is not forgotten, if its dialect has comments."""
        if self.stream_type is EVENT_STREAM:
            await self._body(encode_comment(text))

    async def show(self, chunk: bytes) -> None:
        """Send bytes of ours that come before a node's answer; it may still come from anywhere."""
        if chunk:
            await self._body(chunk)

    def write(self, chunk: bytes) -> bool:
        """Send bytes of a node's answer, after its head; False asks for no more just now.

        Raises:
            ClientGoneError: nobody is there any more.
        """
        self.has_content = True
        return self._pipe.write(chunk)

    def on_writable(self, resume: Callable[[], object]) -> None:
        """Have `resume` called when more may be written, after `write` has asked for no more."""
        self._pipe.on_writable = resume

    async def end(self, chunk: bytes = b"") -> None:
        """End the answer with the last bytes."""
        self.is_complete = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def whole(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Send an answer that is known completely."""
        pairs = _encoded(headers)
        pairs.append((b"content-length", b"%d" % len(body)))
        self.status = status
        self.is_complete = True
        await self._send({"type": _START, "status": status, "headers": pairs, WHOLE_KEY: body})

    async def fail(self, error: RequestError, headers: Iterable[tuple[str, str]] = ()) -> None:
        """End the answer with an error, in the form that is still possible.

        Raises:
            RequestError: `error`, when part of a plain answer was sent. The server then cuts the
                connection: an answer that it ended by itself would look complete.
        """
        if self.is_complete:
            return
        if not self.status:
            face = rendered(error, self._scope)
            await self.whole(face.status, (*face.headers, *headers), face.body)
        elif self.is_stream:
            await self.end(self.failed(error))
        else:
            raise error

    async def _body(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
