"""What is asked of an engine behind a neuron and behind `vllm serve`, and what is seen of it."""

import asyncio
import json
import re
import time
from collections.abc import Callable

import msgspec

from cortex_core.ids import ModelId

CALL_S = 120.0
"""Bound on one answer."""

TINY, EMBED = ModelId("cortex/tiny"), ModelId("cortex/tiny-embed")

_WORDS = "The capital of France is Paris. " * 8
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a server."""

    path: str
    fields: dict[str, object]
    connections: int
    calls: int
    """One after the other on each connection."""

    def request(self, model: ModelId) -> bytes:
        """Return one request as bytes."""
        body = json.dumps({"model": model, **self.fields}).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def loads(scale: int) -> dict[ModelId, dict[str, Load]]:
    """Return all loads by model and name; `scale` 1 is the smallest that works.

    Each takes a server about a second at the usual scale, so that what else the machine does
    falls on both servers.
    """
    talk = {"messages": [{"role": "user", "content": _WORDS}], "temperature": 0}
    long = {"ignore_eos": True, "max_tokens": 8 * scale}
    short = {"ignore_eos": True, "max_tokens": 8}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    chat = "/v1/chat/completions"

    def load(path: str, calls: int, **fields: object) -> Load:
        return Load(path=path, fields=fields, connections=8 * scale, calls=calls * scale)

    return {
        TINY: {
            "chat, streamed": load(chat, 1, **talk, **long, **usage),
            "chat": load(chat, 2, **talk, **short),
            "completions": load("/v1/completions", 2, prompt=_WORDS, temperature=0, **short),
            "tokenize": load("/tokenize", 6, prompt=_WORDS),
        },
        EMBED: {"embeddings": load("/v1/embeddings", 6, input=_WORDS)},
    }


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server."""

    wall_s: float
    requests: int
    tokens: int
    """That were generated; 0 where nothing is."""
    first_s: tuple[float, ...]
    """Until the first byte of the body, per request."""
    gaps_s: tuple[float, ...]
    """Between reads of streams."""
    front_s: float
    """CPU seconds of what stands before the engine core."""
    core_s: float
    """CPU seconds of the engine core."""


class Caller:
    """One connection, and what was seen on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.first_s: list[float] = []
        self.gaps_s: list[float] = []
        self.tokens = 0

    async def calls(self, request: bytes, count: int) -> None:
        """Make `count` calls, one after the other."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for _ in range(count):
                async with asyncio.timeout(CALL_S):
                    await self._call(reader, writer, request)
        finally:
            writer.close()

    async def one(self, request: bytes) -> None:
        """Make one call, that may take long."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await self._call(reader, writer, request)
        writer.close()

    async def _call(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        begin = last = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise RuntimeError(f"{head!r} {await reader.read(1000)!r}")
        found = _LENGTH.search(head)
        if found is not None:
            body = await reader.readexactly(int(found[1]))
            self.first_s.append(time.perf_counter() - begin)
        else:
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n"):
                data = await reader.read(1 << 16)
                now = time.perf_counter()
                if not data:
                    raise RuntimeError("the stream ended without its terminator")
                if body:
                    self.gaps_s.append(now - last)
                else:
                    self.first_s.append(now - begin)
                body, last = body + data, now
        self.tokens += max((int(count) for count in _TOKENS.findall(body)), default=0)


async def measure(
    port: int, load: Load, model: ModelId, cpu_s: Callable[[], tuple[float, float]]
) -> Run:
    """Put one load on the server on a port.

    Args:
        port: its.
        load: what is asked.
        model: of whom.
        cpu_s: tells the CPU seconds of its front and of its engine core so far.
    """
    request = load.request(model)
    callers = [Caller(port) for _ in range(load.connections)]
    front_s, core_s = cpu_s()
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.calls(request, load.calls))
    wall_s = time.perf_counter() - begin
    front_end_s, core_end_s = cpu_s()
    return Run(
        wall_s=wall_s,
        requests=load.connections * load.calls,
        tokens=sum(caller.tokens for caller in callers),
        first_s=tuple(took for caller in callers for took in caller.first_s),
        gaps_s=tuple(gap for caller in callers for gap in caller.gaps_s),
        front_s=front_end_s - front_s,
        core_s=core_end_s - core_s,
    )
