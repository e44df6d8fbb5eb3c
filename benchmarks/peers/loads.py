"""Loads over raw connections: what they cost is little, and the same for everybody."""

import asyncio
import json
import time
from collections.abc import Mapping

import msgspec

from benchmarks.upstream import CHUNK, DONE, MODEL

MARK = b"word "
"""Part of every event that carries text, also where a gateway wrote it anew."""

READ_BYTES = 1 << 16


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a load goes."""

    port: int
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Streams(msgspec.Struct, frozen=True, kw_only=True):
    """What came of many streams."""

    chunks: int
    wall_s: float
    gaps_s: list[float]
    first_s: list[float]


def request(target: Target, *, user: str = "", prompt_bytes: int = 500) -> bytes:
    """Return a whole request; `user` of a stream is the number of its chunks and their gap."""
    fields = {
        "model": MODEL,
        "stream": bool(user),
        "user": user or "x",
        "messages": [{"role": "user", "content": "word " * (prompt_bytes // 5)}],
    }
    body = json.dumps(fields, separators=(",", ":")).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _read_answer(reader: asyncio.StreamReader) -> None:
    """Read one answer that is none of a stream.

    Raises:
        RuntimeError: it is not a 200.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(head.split(b"\r\n")[0].decode())
    if b"\r\ncontent-length:" in head:
        length = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    else:
        await reader.readuntil(b"0\r\n\r\n")


async def sequential(target: Target, count: int, *, prompt_bytes: int = 500) -> list[float]:
    """Make `count` calls on one connection and return how long each took, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    data, took = request(target, prompt_bytes=prompt_bytes), []
    for _ in range(count):
        begin = time.perf_counter()
        writer.write(data)
        await _read_answer(reader)
        took.append(time.perf_counter() - begin)
    writer.close()
    return took


async def crowd(target: Target, callers: int, count: int) -> float:
    """Have `callers` connections make `count` calls each; return the wall seconds."""
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(sequential(target, count))
    return time.perf_counter() - begin


async def open_loop(target: Target, rate_per_s: float, count: int) -> list[float]:
    """Make calls when they are due; return seconds from then to their ends, in any order."""
    # uvloop's own clock counts in milliseconds.
    clock = time.perf_counter
    took: list[float] = []
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    data, begin = request(target), clock() + 0.05

    async def one(due_at: float) -> None:
        reader, writer = (
            idle.pop() if idle else await asyncio.open_connection("127.0.0.1", target.port)
        )
        writer.write(data)
        await _read_answer(reader)
        took.append(clock() - due_at)
        idle.append((reader, writer))

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            due_at = begin + number / rate_per_s
            await asyncio.sleep(max(0.0, due_at - clock()))
            tasks.create_task(one(due_at))
    for _, writer in idle:
        writer.close()
    return took


async def _stream(target: Target, chunks: int, gap_s: float, found: Streams) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    begin = last = time.perf_counter()
    writer.write(request(target, user=f"{chunks}/{gap_s}"))
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.lower().startswith(b"http/1.1 200"):
        raise RuntimeError(head.split(b"\r\n")[0].decode())
    tail, seen = b"", 0
    while DONE.strip() not in tail:
        data = await reader.read(READ_BYTES)
        if not data:
            raise RuntimeError("a stream ended without its end")
        now = time.perf_counter()
        # What is cut between two reads counts with the second.
        tail = tail[-len(CHUNK) :] + data
        if data.find(MARK) >= 0:
            found.gaps_s.append(now - last) if seen else found.first_s.append(now - begin)
            seen, last = seen + 1, now
    writer.close()


async def streams(target: Target, count: int, chunks: int, gap_s: float) -> Streams:
    """Read `count` streams at once, begun spread over ten of their gaps."""
    found = Streams(chunks=count * chunks, wall_s=0.0, gaps_s=[], first_s=[])
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(_stream(target, chunks, gap_s, found))
            await asyncio.sleep(10 * gap_s / count)
    return msgspec.structs.replace(found, wall_s=time.perf_counter() - begin)
