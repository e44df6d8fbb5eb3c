"""From a name to a connected socket: the addresses of a host, and the one that answers first."""

import asyncio
import itertools
import socket
from asyncio.staggered import staggered_race
from functools import partial

ATTEMPT_DELAY_S = 0.25
"""RFC 8305, section 5: until the next address is tried as well."""

FRESH_S = 10.0
"""How long the addresses of a name are believed; aiohttp's too."""

Address = tuple[int, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]
"""Family, and what `connect` takes."""


class Dialer:
    """Opens sockets to one host and port.

    Args:
        host: name or address.
        port: of TCP.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._addresses: list[Address] = []
        self._known_until = 0.0
        # A thousand requests at once need one look-up.
        self._lookup = asyncio.Lock()

    async def open(self) -> socket.socket:
        """Return a connected socket, which belongs to the caller.

        Raises:
            OSError: there is no such host, or no address of it answers.
        """
        addresses = await self._resolve()
        if len(addresses) == 1:
            return await _connect(addresses[0])
        attempts = [partial(_connect, address) for address in addresses]
        opened: socket.socket | None
        opened, _, errors = await staggered_race(attempts, ATTEMPT_DELAY_S)
        if opened is None:
            raise OSError("; ".join(str(error) for error in errors))
        return opened

    async def _resolve(self) -> list[Address]:
        """Return the addresses, those of both families in turns (RFC 8305, section 4)."""
        loop = asyncio.get_running_loop()
        async with self._lookup:
            if loop.time() >= self._known_until:
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                first = [(info[0], info[4]) for info in found if info[0] == found[0][0]]
                others = [(info[0], info[4]) for info in found if info[0] != found[0][0]]
                pairs = itertools.zip_longest(first, others)
                self._addresses = [one for pair in pairs for one in pair if one is not None]
                self._known_until = loop.time() + FRESH_S
            return self._addresses


async def _connect(address: Address) -> socket.socket:
    family, at = address
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(opened, at)
    except BaseException:
        opened.close()
        raise
    return opened
