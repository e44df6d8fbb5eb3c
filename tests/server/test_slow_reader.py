"""A caller that does not read costs little, and not for long."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from cortex_core.server.exchange import Cut, exchange_of
from cortex_core.server.limits import Limits
from tests.server.apps import START, Watched, chunk, hello
from tests.server.harness import at_rest, eventually, get, in_use, serving

# 128 KiB asked for, which the kernel doubles, 64 KiB in the process, and what is under way.
BUFFERED_BYTES = 512 * 1024


class Firehose:
    """Sends for ever, and counts what was taken."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.taken_bytes = 0
        self.cuts: list[Cut | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await send(START)
            while True:
                await send(chunk(self.piece))
                self.taken_bytes += len(self.piece)
        finally:
            self.cuts.append(exchange_of(scope).cut)


async def test_stalled_reader_is_dropped_and_held_little() -> None:
    """Ours: `write_stall_s`; an untuned socket takes four megabytes in."""
    app = Firehose(b"x" * 8192)
    async with serving(app, limits=Limits(write_stall_s=0.3), flush_timeout_s=60) as server:
        before = await at_rest()
        client = await server.connect(receive_buffer=4096)
        await client.send(get())

        await eventually(lambda: app.cuts == [Cut.STALLED])
        assert 0 < app.taken_bytes < BUFFERED_BYTES
        # Our end is gone at once, though the caller never takes what was written.
        tasks, sockets = before
        await eventually(lambda: in_use() == (tasks, sockets + 1))


class Pump:
    """Writes for ever without waiting, whenever it may."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.taken_bytes = 0
        self.pauses = 0
        self.cuts: list[Cut | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = exchange_of(scope)

        def pump() -> None:
            while exchange.write(self.piece):
                self.taken_bytes += len(self.piece)
            self.pauses += 1

        exchange.on_writable = pump
        try:
            await send(START)
            pump()
            await asyncio.Event().wait()
        finally:
            exchange.on_writable = None
            self.cuts.append(exchange.cut)


async def test_reader_that_stalls_before_who_does_not_wait_is_dropped_too() -> None:
    """Ours: `write` is held to the same bounds as `send`."""
    app = Pump(b"x" * 8192)
    async with serving(app, limits=Limits(write_stall_s=0.3), flush_timeout_s=60) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())

        await eventually(lambda: app.cuts == [Cut.STALLED])
        assert 0 < app.taken_bytes < BUFFERED_BYTES


async def test_who_does_not_wait_is_told_when_to_go_on() -> None:
    """Ours: a reader that goes on after a pause gets every byte."""
    app = Pump(b"x" * 8192)
    async with serving(app) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())
        await eventually(lambda: app.pauses == 1)
        paused_at = app.taken_bytes
        while app.taken_bytes < paused_at + 4 * BUFFERED_BYTES:
            assert await client.more(), "the answer was cut"

        assert app.pauses > 1
        assert app.cuts == []


async def test_one_large_answer_that_is_not_read_is_dropped_too() -> None:
    """Ours: a single `send` of megabytes is timed piece by piece."""
    app = Firehose(b"x" * 8_000_000)
    async with serving(app, limits=Limits(write_stall_s=0.3), flush_timeout_s=60) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())

        await eventually(lambda: app.cuts == [Cut.STALLED])
        assert app.taken_bytes == 0


async def test_slow_reader_of_a_large_answer_is_not_stalled() -> None:
    """Ours: what counts is progress, not the time of the whole."""
    body = b"x" * 1_500_000

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send(START)
            await send(chunk(body, more=False))

    async with serving(large, limits=Limits(write_stall_s=0.25), flush_timeout_s=5) as server:
        client = await server.connect(receive_buffer=65536)
        await client.send(get())
        while len(client.buffer) < len(body):
            assert await client.more(), "the answer was cut"
            await asyncio.sleep(0.02)

        assert (await client.answer()).body == body


async def test_stalled_reader_does_not_slow_others_down() -> None:
    """Ours: one connection's full buffers are its own affair."""
    hose = Firehose(b"x" * 8192)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (hello if scope["path"] == "/hello" else hose)(scope, receive, send)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)

    async with serving(guarded, drain_timeout_s=0.1) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())
        await eventually(lambda: hose.taken_bytes > 0)

        for _ in range(20):
            assert (await server.ask(get("/hello"))).body == b"hi"


@pytest.mark.parametrize("has_pieces", [True, False])
async def test_quiet_stream_is_not_a_stall(has_pieces: bool) -> None:
    """Ours: between two pieces nothing is being written, so nothing can stall."""
    app = Watched(has_pieces=has_pieces)
    async with serving(app, limits=Limits(write_stall_s=0.05)) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"begin")
        await asyncio.sleep(0.3)
        app.go_on.set()

        await client.until(b"data: end")
        assert app.cancelled == 0
