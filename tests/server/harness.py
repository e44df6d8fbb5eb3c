"""A server as the daemons run it, on a free port, and a client that speaks bytes."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.server.drain import Drain
from cortex_core.server.limits import Limits
from cortex_core.server.listen import ListeningSocket, open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect

WAIT_S = 5.0

App = Callable[[Scope, Receive, Send], object]


class Server:
    """What a test may ask of the server that it runs."""

    def __init__(self, listener: ListeningSocket, drain: Drain, shutdown: Shutdown) -> None:
        self.port = listener.port
        self.url = listener.url
        self.drain = drain
        self.shutdown = shutdown
        self.is_over = asyncio.Event()
        self.clients: list[Client] = []
        self.listeners: list[Listener] = []

    async def connect(self, *, receive_buffer: int | None = None) -> "Client":
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        self.clients.append(Client(sock))
        return self.clients[-1]

    async def end(self) -> None:
        """Close all clients and go down."""
        for client in self.clients:
            client.close()
        self.shutdown.ask()
        async with asyncio.timeout(WAIT_S * 3):
            await self.is_over.wait()

    async def ask(self, request: bytes) -> "Answer":
        """Send `request` over a connection of its own and read one answer."""
        client = await self.connect()
        try:
            await client.send(request)
            return await client.answer()
        finally:
            client.close()


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp,
    *,
    limits: Limits | None = None,
    keep_alive_s: float = 5.0,
    drain: Drain | None = None,
    drain_timeout_s: float = 1.0,
    flush_timeout_s: float = 1.0,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Serve `app` behind the guard until the block ends, and end in good order."""
    listener = open_listener("127.0.0.1:0")
    server = Server(listener, drain or Drain(), Shutdown())
    ready = asyncio.Event()
    stack = protect(app, drain=server.drain, limits=limits)
    server.listeners = [Listener(app=stack, socket=listener, keep_alive_s=keep_alive_s)]

    async def life() -> None:
        await serve(
            server.listeners,
            drain=server.drain,
            shutdown=server.shutdown,
            environ=environ or {},
            drain_timeout_s=drain_timeout_s,
            hurry_timeout_s=0.1,
            graceful_s=1.0,
            flush_timeout_s=flush_timeout_s,
            on_ready=ready.set,
        )
        server.is_over.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(life())
        async with asyncio.timeout(WAIT_S):
            await ready.wait()
        try:
            yield server
        finally:
            await server.end()


class Answer:
    """One parsed HTTP/1.1 answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.is_complete = True
        """The end of the body was seen, not just the end of the connection."""


class Client:
    """A raw connection; every wait is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._loop.sock_sendall(self.sock, data)

    async def more(self) -> bool:
        """Read what comes next; `False` at the end of the connection."""
        async with asyncio.timeout(WAIT_S):
            try:
                data = await self._loop.sock_recv(self.sock, 65536)
            except ConnectionResetError:
                return False
        self.buffer += data
        return bool(data)

    async def until(self, mark: bytes) -> bytes:
        """Read until `mark` was seen and return everything up to it, `mark` included."""
        while mark not in self.buffer:
            assert await self.more(), f"the connection ended before {mark!r}: {self.buffer!r}"
        end = self.buffer.index(mark) + len(mark)
        head, self.buffer = self.buffer[:end], self.buffer[end:]
        return head

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        while await self.more():
            pass
        return self.buffer

    async def answer(self) -> Answer:
        """Read one answer."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        answer = Answer(int(head[0].split()[1]), headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            await self._chunks(answer)
            return answer
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            if not await self.more():
                answer.is_complete = False
                break
        answer.body, self.buffer = self.buffer[:length], self.buffer[length:]
        return answer

    async def _chunks(self, answer: Answer) -> None:
        try:
            while size := int(await self.until(b"\r\n"), 16):
                while len(self.buffer) < size + 2:
                    assert await self.more()
                answer.body += self.buffer[:size]
                self.buffer = self.buffer[size + 2 :]
            await self.until(b"\r\n")
        except AssertionError:
            answer.is_complete = False

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST in place of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def get(path: str = "/", *headers: str) -> bytes:
    """Write a GET."""
    return request("GET", path, *headers)


def post(body: bytes, path: str = "/", *headers: str) -> bytes:
    """Write a POST with an announced body."""
    return request("POST", path, f"content-length: {len(body)}", *headers) + body


def request(method: str, path: str, *headers: str, version: str = "1.1") -> bytes:
    """Write the head of a request."""
    lines = [f"{method} {path} HTTP/{version}", "host: test", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


async def eventually(is_true: Callable[[], bool]) -> None:
    """Return once `is_true`; fail when it takes longer than `WAIT_S`."""
    async with asyncio.timeout(WAIT_S):
        while not is_true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def at_rest() -> tuple[int, int]:
    """Return how many tasks and sockets there are once their numbers have settled."""
    async with asyncio.timeout(WAIT_S):
        seen = [in_use()]
        while len(seen) < 10 or len(set(seen[-10:])) > 1:
            await asyncio.sleep(0.005)
            seen.append(in_use())
    return seen[-1]


def in_use() -> tuple[int, int]:
    """Return how many tasks the loop has, and how many sockets the process."""
    return len(asyncio.all_tasks()), sockets_now()


def sockets_now() -> int:
    """Count this process's sockets."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return found
