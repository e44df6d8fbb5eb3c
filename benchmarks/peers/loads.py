"""Loads over raw connections: what they cost is little, and the same for everybody."""

import asyncio
import contextlib
import json
import random
import select
import time
from collections.abc import AsyncIterator, Mapping

import msgspec

from benchmarks.upstream import MODEL

MARK = b'"word "'
"""Part of every event that carries text, in every dialect, also where a gateway wrote it anew."""

_LAST = b"\r\n0\r\n\r\n"
"""End of a chunked body."""

FRESH_S = 2.0
"""How long a caller's connection is idle before it is not used again; less than any gateway's."""

# uvloop's own clock counts in milliseconds.
clock = time.perf_counter


class BehindError(Exception):
    """More calls are open than were to be."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a load goes."""

    port: int
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Answer(msgspec.Struct, kw_only=True):
    """What came of one call, by the clock."""

    chunks: int = 0
    """Pieces of text."""
    begin_at: float = 0.0
    """When the call was due."""
    first_byte_at: float = 0.0
    first_chunk_at: float = 0.0
    end_at: float = 0.0
    gaps_s: list[float] = msgspec.field(default_factory=list)
    """Between reads with text in them."""


PATHS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
"""Where each dialect is spoken."""


def request(
    target: Target, *, stream: tuple[int, float] | None = None, size: int = 1000,
    dialect: str = "chat", model: str = MODEL,
) -> bytes:  # fmt: skip
    """Return a whole request.

    Args:
        target: whose headers it has.
        stream: how many events are asked for, and seconds between them; none asks for no stream.
        size: of its body, about, in bytes.
        dialect: one of `PATHS`.
        model: that is asked for.
    """
    asked = f"{stream[0]}/{stream[1]} events " if stream else ""
    text = asked + "word " * max(1, (size - 150) // 5)
    fields: dict[str, object] = {"model": model, "stream": stream is not None}
    if dialect == "responses":
        fields |= {"input": text, "store": False}
    else:
        fields |= {"messages": [{"role": "user", "content": text}], "max_tokens": 4096}
    body = json.dumps(fields, separators=(",", ":")).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    head = (
        f"POST {PATHS[dialect]} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """A connection of a caller's, for one call after the other."""

    transport: asyncio.Transport
    _ended: asyncio.Future[Answer]

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer: Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # TCP

    @property
    def answer(self) -> Answer | None:
        """What has come so far of the call that is open."""
        return self._answer

    @property
    def has_begun(self) -> bool:
        """Whether an answer is coming."""
        return self._answer is not None and self._answer.first_byte_at > 0

    def has_ended(self) -> bool:
        """Whether the gateway has closed it, which a loop that is late has not heard of."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        if descriptor < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def call(self, data: bytes, due_at: float | None = None) -> asyncio.Future[Answer]:
        """Send a request; the answer comes with its end.

        Raises:
            RuntimeError: it is no 200, or ends before its end.
        """
        self._answer = Answer(begin_at=clock() if due_at is None else due_at)
        self._head: bytes | None = b""
        self._tail, self._left = b"", -1
        self._ended = self._loop.create_future()
        self.transport.write(data)
        return self._ended

    def data_received(self, data: bytes) -> None:
        now, answer = clock(), self._answer
        if answer is None:
            return
        answer.first_byte_at = answer.first_byte_at or now
        if self._head is not None:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            self._head = None
            if not self._read_head(head.lower()):
                return
        seen = self._tail + data
        # Short enough to hold no whole mark, long enough to hold any part of one.
        self._tail = seen[1 - len(MARK) :]
        chunks = seen.count(MARK)
        if chunks:
            if answer.chunks:
                answer.gaps_s.append(now - answer.end_at)
            else:
                answer.first_chunk_at = now
            answer.chunks, answer.end_at = answer.chunks + chunks, now
        self._left -= len(data)
        if self._left == 0 or (self._left < 0 and seen.endswith(_LAST)):
            answer.end_at, self._answer = now, None
            if not self._ended.done():
                self._ended.set_result(answer)

    def _read_head(self, head: bytes) -> bool:
        if not head.startswith(b"http/1.1 200"):
            self._fail(head.split(b"\r\n")[0].decode())
            return False
        if b"\r\ncontent-length:" in head:
            self._left = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._fail("a connection ended before its answer")

    def _fail(self, why: str) -> None:
        self._answer = None
        self.transport.abort()
        if not self._ended.done():
            self._ended.set_exception(RuntimeError(why))


async def connect(target: Target) -> Connection:
    """Return a new connection."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", target.port)
    return connection


async def sequential(target: Target, count: int, data: bytes | None = None) -> list[float]:
    """Make `count` calls on one connection and return how long each took, in seconds."""
    connection, took = await connect(target), []
    data = data or request(target)
    for _ in range(count):
        answer = await connection.call(data)
        took.append(answer.end_at - answer.begin_at)
    connection.transport.close()
    return took


async def crowd(target: Target, callers: int, count: int, data: bytes | None = None) -> float:
    """Have `callers` connections make `count` calls each; return the wall seconds."""
    begin = clock()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(sequential(target, count, data))
    return clock() - begin


def _usable(idle: list[tuple[float, Connection]]) -> Connection | None:
    """Take one out of those that are idle since when; a call on one that ends would be lost."""
    while idle:
        # A gateway may be about to close what was idle for long.
        since, connection = idle.pop()
        if clock() - since <= FRESH_S and not connection.has_ended():
            return connection
        connection.transport.close()
    return None


async def open_loop(
    target: Target, rate_per_s: float, count: int, data: bytes, *, most_open: int | None = None
) -> list[Answer]:
    """Make calls when they are due, whatever became of those before.

    Args:
        target: where they go.
        rate_per_s: at which they are due.
        count: of calls.
        data: what each sends.
        most_open: so many may be open at once; none sets no limit.

    Returns:
        What came of them, in the order of their end, each with when it was due.

    Raises:
        BehindError: more than `most_open` would have been open; the rest was not made.
    """
    answers: list[Answer] = []
    idle: list[tuple[float, Connection]] = []

    async def one(due_at: float) -> None:
        connection = _usable(idle) or await connect(target)
        try:
            answers.append(await connection.call(data, due_at))
        except asyncio.CancelledError:
            connection.transport.abort()
            raise
        idle.append((clock(), connection))

    begin, number, is_behind = clock() + 0.05, 0, False
    async with asyncio.TaskGroup() as tasks:
        calls: list[asyncio.Task[None]] = []
        while number < count and not is_behind:
            await asyncio.sleep(max(0.0, begin + number / rate_per_s - clock()))
            # All that are due by now, lest sleeping for each costs more than calling.
            while number < count and begin + number / rate_per_s <= clock() and not is_behind:
                is_behind = most_open is not None and number - len(answers) >= most_open
                calls.append(tasks.create_task(one(begin + number / rate_per_s)))
                number += 1
        if is_behind:
            for call in calls:
                call.cancel()
    for _, connection in idle:
        connection.transport.close()
    if is_behind:
        raise BehindError(f"{most_open} calls were open after {number} of {count}")
    return answers


async def streams(
    target: Target, count: int, chunks: int, gap_s: float, *, spread_s: float, dialect: str = "chat"
) -> list[Answer]:
    """Read `count` streams at once, each on a connection of its own.

    Args:
        target: where they come from.
        count: of streams.
        chunks: of each stream.
        gap_s: between the chunks, as the node sends them.
        spread_s: over which they begin, as requests of strangers do.
        dialect: that is spoken.

    Raises:
        RuntimeError: one had other chunks than those that were asked for.
    """
    answers: list[Answer] = []
    data = request(target, stream=(chunks, gap_s), dialect=dialect)

    async def one() -> None:
        connection = await connect(target)
        answer = await connection.call(data)
        connection.transport.close()
        if answer.chunks != chunks:
            raise RuntimeError(f"a stream of {chunks} chunks had {answer.chunks}")
        answers.append(answer)

    begin = clock()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            await asyncio.sleep(max(0.0, begin + number * spread_s / count - clock()))
            tasks.create_task(one())
    return answers


@contextlib.asynccontextmanager
async def held(
    target: Target, count: int, chunks: int, gap_s: float, *, spread_s: float
) -> AsyncIterator[list[Answer]]:
    """Open streams one after the other, and cut all at the end of the context.

    Args:
        target: where they come from.
        count: of streams.
        chunks: of each stream, if it is not cut.
        gap_s: between the chunks, as the node sends them.
        spread_s: over which they begin.

    Yields:
        What comes of them, once all were asked for.

    Raises:
        RuntimeError: one has ended before it was cut.
    """
    data = request(target, stream=(chunks, gap_s))
    connections: list[Connection] = []
    answers: list[Answer] = []
    ends: list[asyncio.Future[Answer]] = []
    begin = clock()
    try:
        for number in range(count):
            await asyncio.sleep(max(0.0, begin + number * spread_s / count - clock()))
            connection = await connect(target)
            connections.append(connection)
            ends.append(connection.call(data))
            if connection.answer is not None:
                answers.append(connection.answer)
        yield answers
        early = next((end for end in ends if end.done()), None)
        if early is not None:
            raise RuntimeError(f"a stream ended too early: {early.exception()}")
    finally:
        for connection, end in zip(connections, ends, strict=True):
            end.cancel()
            connection.transport.abort()
            if not end.cancelled():
                end.exception()


async def storm(target: Target, count: int, rate_per_s: float, seed: int) -> int:
    """Begin streams that have no end in sight and cut each after a while.

    Args:
        target: where they come from.
        count: of streams.
        rate_per_s: at which they begin.
        seed: of the times after which each is cut, between none and half a second; some are cut
            before there is an answer.

    Returns:
        How many had begun to answer when they were cut.
    """
    data, chance = request(target, stream=(1_000_000, 0.02)), random.Random(seed)
    answered = 0

    async def one(after_s: float) -> None:
        nonlocal answered
        connection = await connect(target)
        ended = connection.call(data)
        await asyncio.wait([ended], timeout=after_s)
        answered += connection.has_begun
        # A close would wait for what was written; callers that vanish do not.
        connection.transport.abort()
        await asyncio.wait([ended])
        ended.exception()

    begin = clock()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            await asyncio.sleep(max(0.0, begin + number / rate_per_s - clock()))
            tasks.create_task(one(chance.uniform(0.0, 0.5)))
    return answered
