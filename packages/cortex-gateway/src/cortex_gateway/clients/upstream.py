"""Requests to the inference paths of nodes, over a client of our own.

aiohttp is left to what is asked seldom: the control API of neurons.
"""

from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from cortex_gateway.clients.answer import Answer
from cortex_gateway.clients.connection import Connection
from cortex_gateway.clients.pool import Pool
from cortex_gateway.ports import Body
from cortex_gateway.settings import Timeouts

Pieces = Sequence[bytes | memoryview]

_MAX_URLS = 1024
"""Remembered ones. There are a few for each node, and more only while the fleet changes."""


class Patience(Protocol):
    """How long a node may be silent, as it is at the moment of the question."""

    @property
    def first_byte_s(self) -> float:
        """For the head of its answer."""
        ...

    @property
    def idle_s(self) -> float:
        """Between two chunks of its answer."""
        ...


class Place:
    """One URL: the connections to its host, and the lines that each request to it begins with."""

    __slots__ = ("head", "pool")

    def __init__(self, pool: Pool, head: str) -> None:
        self.pool = pool
        self.head = head


class HttpUpstream:
    """`Upstream` over connections of our own.

    A request is written to a connection once and never again, not even if that was idle and
    turns out to be closed: it may have been begun, and whether it is sent to another replica is
    decided by who knows all of them (`routing.retry`). That this is rare is seen to elsewhere:
    an idle connection is read, so that its end is known before the next request, it is left alone
    before the node's own patience ends, and a fresh one is used when that has happened.

    Args:
        timeouts: for connecting and for idle connections.
        patience: with silent nodes; asked anew for each request.
    """

    def __init__(self, timeouts: Timeouts, patience: Patience) -> None:
        self._timeouts = timeouts
        self._patience = patience
        self._pools: dict[tuple[str, str, int], Pool] = {}
        self._places: dict[str, Place] = {}

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return sum(len(pool.connections) for pool in self._pools.values())

    @property
    def idle(self) -> int:
        """Open connections that no request is on."""
        return sum(len(pool.idle) for pool in self._pools.values())

    def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: Body
    ) -> Coroutine[Any, Any, Answer]:
        """Send a request; see `Upstream.post`."""
        place = self._places.get(url) or self._place(url)
        pieces = (body,) if isinstance(body, bytes) else body
        head = _head(place, headers, sum(map(len, pieces)))
        connection = place.pool.take()
        if connection is None:
            return self._post_anew(place.pool, head, pieces)
        return self._ask(connection, head, pieces)

    async def _post_anew(self, pool: Pool, head: bytes, pieces: Pieces) -> Answer:
        return await self._ask(await pool.connect(), head, pieces)

    def _ask(
        self, connection: Connection, head: bytes, pieces: Pieces
    ) -> Coroutine[Any, Any, Answer]:
        patience = self._patience
        return connection.ask(
            head, pieces, first_byte_s=patience.first_byte_s, idle_s=patience.idle_s
        )

    async def close(self) -> None:
        """Reset all connections; returns when they are gone."""
        for pool in self._pools.values():
            await pool.close()

    def _place(self, url: str) -> Place:
        parts = urlsplit(url)
        name = (parts.hostname or "").encode("idna").decode()
        default = 443 if parts.scheme == "https" else 80
        port = parts.port or default
        key = (parts.scheme, name, port)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(
                *key,
                connect_s=self._timeouts.connect_s,
                keep_alive_s=self._timeouts.keep_alive_s,
            )
        shown = f"[{name}]" if ":" in name else name
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        if len(self._places) >= _MAX_URLS:
            self._places.clear()
            self._pools = {at: one for at, one in self._pools.items() if not one.is_unused}
            self._pools[key] = pool
        place = self._places[url] = Place(
            pool,
            f"POST {target} HTTP/1.1\r\n"
            f"host: {shown if port == default else f'{shown}:{port}'}\r\n"
            "accept-encoding: identity\r\n",
        )
        return place


@asynccontextmanager
async def open_upstream(timeouts: Timeouts, patience: Patience) -> AsyncIterator[HttpUpstream]:
    """Open the way to nodes; its connections are closed when the context ends.

    Args:
        timeouts: for connecting and for idle connections.
        patience: with silent nodes; asked anew for each request.
    """
    upstream = HttpUpstream(timeouts, patience)
    try:
        yield upstream
    finally:
        await upstream.close()


def _head(place: Place, headers: Sequence[tuple[str, str]], length: int) -> bytes:
    """Return the head of a request.

    Raises:
        ValueError: a header has more than one line, or is no text that HTTP/1 can carry.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header of the request has more than one line")
    return f"{place.head}{lines}content-length: {length}\r\n\r\n".encode("latin-1")
