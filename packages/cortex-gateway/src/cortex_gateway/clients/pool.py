"""The connections to one host, those that are idle among them."""

import asyncio
import ssl
from functools import cache

from cortex_core.routing.retry import Failure
from cortex_gateway.clients.connection import Connection
from cortex_gateway.clients.dial import Dialer
from cortex_gateway.ports import UpstreamFailure

MAX_IDLE = 1024
"""Idle connections that are kept to one host."""

_LAST_LOOK_S = 0.1
"""Long enough for some turns of a loop that has much to make up for."""

_CLOSING_S = 5.0
"""How long connections may take to be gone at the end, which they are at once."""


class Pool:
    """Connections to one host and port.

    Args:
        scheme: `http` or `https`.
        name: of the host, or its address.
        port: of TCP.
        connect_s: how long a connection may take, the name's look-up included.
        keep_alive_s: how long an idle one is kept.
    """

    def __init__(
        self, scheme: str, name: str, port: int, *, connect_s: float, keep_alive_s: float
    ) -> None:
        self.connections: set[Connection] = set()
        """All that are open."""
        # In order: the one that was used last is used first, so that the others may grow old.
        self.idle: dict[Connection, None] = {}
        self._dialer = Dialer(name, port)
        self._server_name = name if scheme == "https" else None
        self._connect_s = connect_s
        self._keep_alive_s = keep_alive_s
        self._is_empty = asyncio.Event()
        self._opening = 0

    @property
    def is_unused(self) -> bool:
        """Whether there is no connection, nor one on its way."""
        return not self.connections and not self._opening

    def take(self) -> Connection | None:
        """Return an idle connection that is open as far as can be known."""
        return self.idle.popitem()[0] if self.idle else None

    async def connect(self) -> Connection:
        """Open a connection.

        Raises:
            UpstreamFailure: it could not be opened in time.
        """
        self._opening += 1
        try:
            async with asyncio.timeout(None) as limit:
                timer = asyncio.get_running_loop().call_later(self._connect_s, _look_again, limit)
                try:
                    connection = await self._open()
                finally:
                    timer.cancel()
        except TimeoutError:
            raise UpstreamFailure(Failure.CONNECT, "no connection in time") from None
        except OSError as error:
            raise UpstreamFailure(Failure.CONNECT, str(error) or type(error).__name__) from None
        finally:
            self._opening -= 1
        self.connections.add(connection)
        self._is_empty.clear()
        return connection

    async def close(self) -> None:
        """Reset all connections; returns when they are gone."""
        for connection in list(self.connections):
            connection.drop()
        if self.connections:
            async with asyncio.timeout(_CLOSING_S):
                await self._is_empty.wait()

    # What connections say.

    def keep(self, connection: Connection) -> None:
        """Have a connection used again."""
        self.idle[connection] = None
        if len(self.idle) > MAX_IDLE:
            next(iter(self.idle)).close()

    def leave(self, connection: Connection) -> None:
        """Take note that a connection is no use any more."""
        self.idle.pop(connection, None)

    def lose(self, connection: Connection) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()

    async def _open(self) -> Connection:
        opened = await self._dialer.open()
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, self._keep_alive_s),
                sock=opened,
                ssl=None if self._server_name is None else _tls(),
                server_hostname=self._server_name,
            )
        except BaseException:
            opened.close()
            raise
        return connection


def _look_again(limit: asyncio.Timeout) -> None:
    """Let the time be up, unless the connection is there already."""
    # After a loop stood still, libuv tells that the time is up before it looks at sockets.
    limit.reschedule(asyncio.get_running_loop().time() + _LAST_LOOK_S)


@cache
def _tls() -> ssl.SSLContext:
    """Return how certificates are checked: by what the system trusts."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
