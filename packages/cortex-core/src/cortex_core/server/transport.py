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


def address_of(transport: asyncio.BaseTransport, end: str) -> tuple[str, int] | None:
    """Return host and port of an end of a TCP connection.

    Args:
        transport: of the connection.
        end: `peername` or `sockname`.
    """
    address = transport.get_extra_info(end)
    return (address[0], address[1]) if isinstance(address, tuple) else None
