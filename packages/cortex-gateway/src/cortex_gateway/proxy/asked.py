"""What a caller asks for, whatever its dialect: the seam between the api rooms and the proxy.

An api room reads a request of its dialect into an `Asked`; the proxy finds a replica, has the
`Asked` say what to send there, and passes the answer back through what it said.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.errors import RequestError
from cortex_core.translate.target import Target
from cortex_gateway.ports import Body

EVENT_STREAM = "text/event-stream; charset=utf-8"


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a request, as api rooms read it."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    request_id: str


class Answering(Protocol):
    """Turns an upstream's answer into the caller's; made anew for every attempt.

    `cortex_core.translate.parts.Translator` is one.
    """

    @property
    def failure(self) -> RequestError | None:
        """What the upstream's stream broke with, once `feed` or `end` has told the caller."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take whole events of the upstream's stream; may return nothing."""
        ...

    def end(self) -> bytes:
        """Take the end of the stream, and return the caller's last bytes."""
        ...

    def whole(self, body: bytes) -> bytes:
        """Take a successful answer that is no stream.

        Raises:
            RequestError: it cannot be read, or says that it failed.
        """
        ...

    def fail(self, error: RequestError) -> bytes:
        """Return what ends the caller's stream when it breaks."""
        ...

    def keep_alive(self) -> bytes:
        """Return bytes that may be sent between two events."""
        ...

    def thought(self, text: str) -> bytes:
        """Return what shows a streaming caller `text` as reasoning, before its answer begins."""
        ...


class Outbound(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to an upstream, and how its answer is read."""

    path: str
    body: Body
    answer: Answering | None = None
    """`None` passes every byte of the answer on as it is."""
    is_translated: bool = False
    """Whether the upstream speaks another dialect than the caller, in its errors as well."""
    headers: Sequence[tuple[str, str]] = ()
    """Beside those that every request to an upstream has."""
    ignored: tuple[str, ...] = ()
    """Paths in the caller's request that have no meaning there and were left out."""


class Asked(Protocol):
    """One request to a model."""

    @property
    def model(self) -> str:
        """As the caller named it."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether the caller wants events."""
        ...

    @property
    def stream_type(self) -> str:
        """`content-type` of the stream; comments are sent in `EVENT_STREAM` alone."""
        ...

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Say what is sent to a model behind an upstream that speaks `dialect`.

        Called once before the search for a replica, so that a request which cannot work is
        refused at once, and again for every attempt that is not what was foreseen.

        Raises:
            RequestError: the request cannot be put to that model.
        """
        ...

    def failed(self, error: RequestError) -> bytes:
        """Return what ends the stream with `error`, however much of it was sent."""
        ...

    async def settle(self) -> None:
        """Do what must be done when the answer is complete, before its last bytes are sent."""
        ...


ReadAsked = Callable[[Head, bytes], Awaitable[Asked]]
"""Reads head and body of a request in one dialect.

Raises:
    RequestError: they cannot be used.
"""
