"""The way between the processes of one gateway, which nobody else is to use."""

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cortex_core.errors import UpstreamError
from cortex_core.server.drain import Drain
from cortex_core.server.listen import ListeningSocket, open_abstract
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_gateway.clients.inner import behind_workers, open_inner
from cortex_gateway.workers.worker import without_lifespan
from tests.server.harness import serving

TOKEN = "known-to-the-workers"


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """Say who is calling, with what."""
    request = Request(scope, receive)
    body = (await request.body()).decode()
    caller = None if request.client is None else request.client.host
    response: Response = JSONResponse({"caller": caller, "body": body, "path": scope["path"]})
    await response(scope, receive, send)


@contextlib.asynccontextmanager
async def control() -> AsyncIterator[ListeningSocket]:
    """Serve `tell` to workers."""
    inner, drain, shutdown = open_abstract(), Drain(), Shutdown()
    app = protect(without_lifespan(behind_workers(tell, TOKEN)), drain=drain)
    listener = Listener(app=app, socket=inner, keep_alive_s=5.0)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(
            serve([listener], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=1)
        )
        try:
            yield inner
        finally:
            shutdown.ask()


async def test_what_a_worker_passes_on_is_of_its_caller() -> None:
    async with (
        control() as inner,
        open_inner(inner.host, TOKEN) as way,
        serving(without_lifespan(way)) as worker,
    ):
        answer = await worker.ask(
            b"POST /some/where HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
            b"x-cortex-peer: 6.6.6.6\r\n\r\nhi"
        )

    assert answer.status == 200
    assert answer.body == b'{"caller":"127.0.0.1","body":"hi","path":"/some/where"}'


@pytest.mark.parametrize("header", [b"", b"x-cortex-inner: guessed\r\n"])
async def test_nobody_else_is_served(header: bytes) -> None:
    """Ours: any user of the machine may connect, and gets nothing."""
    async with control() as inner:
        reader, writer = await asyncio.open_connection(sock=connected(inner.host))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n")
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 403")
    assert b"caller" not in answer


def connected(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(name)
    sock.setblocking(False)
    return sock


async def test_a_control_process_that_is_gone_is_told_as_such() -> None:
    inner = open_abstract()
    inner.close()
    seen: list[Exception] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await way(scope, receive, send)
        except UpstreamError as error:
            seen.append(error)
            raise

    async with open_inner(inner.host, TOKEN) as way, serving(without_lifespan(note)) as worker:
        answer = await worker.ask(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")

    assert answer.status == 502
    assert len(seen) == 1


def test_the_socket_is_no_file() -> None:
    """Ours: nothing of it stays when the process is killed."""
    inner = open_abstract()
    with contextlib.closing(inner):
        assert inner.host.startswith("\0")
        assert not pathlib.Path(inner.host[1:]).exists()
