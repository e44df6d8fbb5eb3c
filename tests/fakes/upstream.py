"""A node's inference side on a raw socket: every byte, pause and cut is the script's."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

DONE = b"data: [DONE]\n\n"

BACKLOG = 1024
"""A full backlog drops what arrives, and the kernel tries again only seconds later."""


class Wire:
    """One request at the node, and the socket that its answer goes to."""

    def __init__(
        self,
        head: bytes,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.path = lines[0].split(" ")[1]
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        self.body = body
        self.sent_bytes = 0
        self.closed = asyncio.Event()
        """Set when the gateway has closed the connection, or this side has."""
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write raw bytes; suspends while the gateway does not read."""
        self._writer.write(data)
        await self._writer.drain()
        self.sent_bytes += len(data)

    async def head(self, status: int = 200, **headers: str) -> None:
        """Send a status line and headers; underscores in names become hyphens."""
        lines = [f"HTTP/1.1 {status} X"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join((*lines, "", "")).encode("latin-1"))

    async def begin_stream(self) -> None:
        """Send the head of an event stream."""
        await self.head(content_type="text/event-stream", transfer_encoding="chunked")

    async def chunk(self, data: bytes) -> None:
        """Send one HTTP chunk."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, value: object) -> None:
        """Send one event as one HTTP chunk."""
        await self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def end_stream(self) -> None:
        """End the chunked body cleanly."""
        await self.send(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer with its length."""
        headers.setdefault("content_type", "application/json")
        await self.head(status, **headers, content_length=str(len(body)))
        await self.send(body)

    def cut(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()
        self.closed.set()

    async def watch(self) -> None:
        """Note the end of the connection; nothing else may come while an answer is under way."""
        with contextlib.suppress(ConnectionError):
            await self._reader.read(1)
        self.closed.set()


Script = Callable[[Wire], Awaitable[None]]


class ScriptedNode:
    """Serves each request by the script that is next, the last one for ever."""

    def __init__(self, *scripts: Script) -> None:
        self.url = ""
        self.wires: list[Wire] = []
        """Requests in the order in which they came."""
        self.connections = 0
        """Connections that were made."""
        self._scripts = list(scripts)
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def request(self, number: int = 0) -> Wire:
        """Wait for a request, counted from 0."""
        while len(self.wires) <= number:
            self._news.clear()
            await self._news.wait()
        return self.wires[number]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        wire = Wire(head, await reader.readexactly(length), reader, writer)
        self.wires.append(wire)
        self._news.set()
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(wire.watch())
            try:
                await script(wire)
            except ConnectionError:
                wire.closed.set()
            finally:
                watch.cancel()
        return not wire.closed.is_set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=BACKLOG)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.stop()


def words(count: int, *, model: str = "m") -> list[dict[str, object]]:
    """Return the events of a chat answer of `count` tokens, usage last."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}

    def event(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**base, "choices": [choice]}

    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    return [
        event({"role": "assistant", "content": ""}),
        *(event({"content": f"w{n} "}) for n in range(count)),
        event({}, "stop"),
        {**base, "choices": [], "usage": usage},
    ]


def streams(events: Sequence[object]) -> Script:
    """Return a script that streams `events` and the terminator."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        for event in events:
            await wire.event(event)
        await wire.chunk(DONE)
        await wire.end_stream()

    return script


def answers(status: int, body: bytes, **headers: str) -> Script:
    """Return a script that gives one whole answer."""

    async def script(wire: Wire) -> None:
        await wire.answer(status, body, **headers)

    return script


async def refuses(wire: Wire) -> None:
    """Refuse as a neuron does that has the model no longer."""
    body = (
        b'{"error":{"message":"not loaded","type":"server_error","param":null,"code":"no_replica"}}'
    )
    await wire.answer(503, body, x_cortex_not_admitted="1")


async def loses_engine(wire: Wire) -> None:
    """Answer as a neuron does whose engine dies before the first token."""
    body = b'{"error":{"message":"dead","type":"server_error","param":null,"code":"engine_error"}}'
    await wire.answer(500, body, x_cortex_engine_died="1")


async def cuts(wire: Wire) -> None:
    """Reset the connection instead of an answer."""
    wire.cut()


async def hangs(wire: Wire) -> None:
    """Say nothing until the gateway gives up."""
    await wire.closed.wait()


@asynccontextmanager
async def nodes(*all_nodes: ScriptedNode) -> AsyncIterator[None]:
    """Serve several nodes."""
    async with contextlib.AsyncExitStack() as stack:
        for node in all_nodes:
            await stack.enter_async_context(node)
        yield
