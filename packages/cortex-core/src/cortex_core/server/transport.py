"""What transports do not do by themselves."""

import asyncio
import contextlib
import socket
import struct

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""`struct linger`: on, and wait for nothing (socket(7))."""


def reset(transport: asyncio.WriteTransport) -> None:
    """Reset a connection; what was not sent is forgotten, by the kernel too."""
    connection = transport.get_extra_info("socket")
    # A transport's `abort` alone ends with a FIN, behind all that is still to be sent: a complete
    # answer would end so. A socket that is closed already has no descriptor to set it on.
    with contextlib.suppress(OSError, ValueError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class Tap:
    """Whether a connection is read.

    Args:
        transport: of the connection.
        loop: it runs in.
    """

    __slots__ = ("_is_shut", "_loop", "_transport")

    def __init__(self, transport: asyncio.ReadTransport, loop: asyncio.AbstractEventLoop) -> None:
        self._is_shut = False
        self._loop = loop
        self._transport = transport

    def shut(self) -> None:
        """Read no further."""
        if not self._is_shut:
            self._is_shut = True
            self._transport.pause_reading()

    def open(self) -> None:
        """Read on, if it was shut."""
        if self._is_shut:
            self._is_shut = False
            self._transport.resume_reading()

    def give_way(self) -> None:
        """Let the others have a turn within a large body, of which libuv would read 8 MB first."""
        if not self._is_shut and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._is_shut and not self._transport.is_closing():
            self._transport.resume_reading()


def address_of(transport: asyncio.BaseTransport, end: str) -> tuple[str, int] | None:
    """Return host and port of an end of a TCP connection.

    Args:
        transport: of the connection.
        end: `peername` or `sockname`.
    """
    address = transport.get_extra_info(end)
    return (address[0], address[1]) if isinstance(address, tuple) else None
