"""Gets what a URL points at, from the open internet alone.

The name is resolved once, every address that it has is looked at, and the connection goes to one
that was: what the name resolves to a moment later does not matter. Nothing is redirected.
"""

import asyncio
import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable

import msgspec

from neuron.lifecycle.media import Address, Source, is_public

_CHUNK_BYTES = 64 << 10


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What was got."""

    data: bytes
    content_type: str
    """In lower case, without parameters."""


class FetchError(OSError):
    """It cannot be had from there; the text is for logs and tests, not for callers."""


async def fetch(
    source: Source,
    max_bytes: int,
    timeout_s: float,
    *,
    may_connect: Callable[[Address], bool] = is_public,
) -> Fetched:
    """Get what `source` points at.

    Args:
        source: checked.
        max_bytes: most that is read.
        timeout_s: for everything together.
        may_connect: whether an address may be connected to.

    Raises:
        OSError: it cannot be had, for whatever reason.
    """
    deadline = time.monotonic() + timeout_s
    async with asyncio.timeout(timeout_s):
        connection = await _connected(source, may_connect)
        # A second handle on it, since TLS takes the first one over.
        with connection, connection.dup() as handle:
            try:
                return await asyncio.to_thread(_get, source, connection, max_bytes, deadline)
            finally:
                # Ends the thread, if it is still reading.
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)


async def _connected(source: Source, may_connect: Callable[[Address], bool]) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(source.host, source.port, type=socket.SOCK_STREAM)
    except (UnicodeError, socket.gaierror):
        raise FetchError(f"{source.host} has no address") from None
    for *_, address in found:
        if not may_connect(ipaddress.ip_address(str(address[0]).partition("%")[0])):
            raise FetchError(f"{source.host} is at {address[0]}, which is not public")
    family, kind, protocol, _, address = found[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        await loop.sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def _get(source: Source, connection: socket.socket, max_bytes: int, deadline: float) -> Fetched:
    _hurry(connection, deadline)
    client: http.client.HTTPConnection
    if source.is_tls:
        context = ssl.create_default_context()
        client = http.client.HTTPSConnection(source.host, source.port, context=context)
        client.sock = context.wrap_socket(connection, server_hostname=source.host)
    else:
        client = http.client.HTTPConnection(source.host, source.port)
        client.sock = connection
    # It must never make a connection of its own.
    client.auto_open = 0
    try:
        headers = {"accept-encoding": "identity", "connection": "close"}
        client.request("GET", source.target, headers=headers)
        answer = client.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise FetchError(f"{source.host} answers with status {answer.status}")
        data = bytearray()
        while chunk := answer.read(_CHUNK_BYTES):
            data += chunk
            if len(data) > max_bytes:
                raise FetchError(f"{source.host} sends more than {max_bytes} bytes")
            _hurry(client.sock, deadline)
        if answer.length:
            raise FetchError(f"{source.host} ends its answer before its time")
        kind = (answer.getheader("content-type") or "").partition(";")[0].strip().lower()
        return Fetched(data=bytes(data), content_type=kind)
    except http.client.HTTPException as error:
        raise FetchError(f"{source.host} does not speak HTTP: {type(error).__name__}") from error
    finally:
        client.close()


def _hurry(connection: socket.socket | None, deadline: float) -> None:
    """Give the next operation what is left of the time."""
    if connection is not None:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
