"""Nodes that follow a script, byte by byte, and our client to them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

from cortex_gateway.clients.upstream import HttpUpstream, open_upstream
from cortex_gateway.ports import Body, UpstreamAnswer
from cortex_gateway.settings import Timeouts

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Long enough for an answer on a busy machine, short enough to wait for its absence.
HASTY = Timeouts(connect_s=4.0, first_byte_s=1.0, idle_s=1.0)
JSON = [("content-type", "application/json")]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """Run `script` for each connection, after the request's head and body came."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}/v1/chat/completions"
    finally:
        server.close()


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one request and return its head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    )
    return head, await reader.readexactly(length)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Wait for the end of a connection, of whatever kind."""
    with suppress(ConnectionError):
        await reader.read()


def says(*pieces: bytes, then_wait: bool = False) -> Script:
    """Answer with bytes as they are, then close, or say nothing more."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_wait:
            await reader.read()

    return script


@asynccontextmanager
async def upstream(timeouts: Timeouts = HASTY, limit_s: float = 5.0) -> AsyncIterator[HttpUpstream]:
    async with asyncio.timeout(limit_s), open_upstream(timeouts, timeouts) as client:
        yield client


@asynccontextmanager
async def posted(
    client: HttpUpstream, url: str, body: Body = b"{}"
) -> AsyncIterator[UpstreamAnswer]:
    answer = await client.post(url, JSON, body)
    with closing(answer):
        yield answer


async def body_of(answer: UpstreamAnswer) -> bytes:
    body = bytearray()
    while piece := await answer.read():
        body += piece
    return bytes(body)
