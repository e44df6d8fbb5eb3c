"""Bodies are bounded in size and time, and one that nobody reads hurts nobody."""

import asyncio
import socket

import pytest
from starlette.types import Receive, Scope, Send

from cortex_core.server.limits import Limits
from tests.server.apps import echo, hello
from tests.server.harness import Answer, Client, at_rest, eventually, get, in_use, request, serving

SMALL = Limits(max_body_bytes=1000, discard_bytes=10_000, discard_s=0.3)
CHUNKED = request("POST", "/", "transfer-encoding: chunked")


def chunked(*pieces: bytes) -> bytes:
    """Write a body in chunks, end included."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (*pieces, b""))


async def answer_to(client: Client, data: bytes) -> Answer:
    await client.send(data)
    return await client.answer()


@pytest.mark.parametrize("pieces", [1, 15, 1000])
async def test_unread_body_does_not_hang_the_answer(pieces: int) -> None:
    """Hypercorn's ten-slot queue hangs the last `send` for ever at fifteen chunks."""
    async with serving(hello) as server:
        before = await at_rest()
        client = await server.connect()
        await client.send(CHUNKED)

        answer = await answer_to(client, chunked(*[b"x"] * pieces))

        assert (answer.status, answer.body) == (200, b"hi")
        client.close()
        await eventually(lambda: in_use() == before)


async def test_unread_body_that_came_along_keeps_the_connection() -> None:
    """Ours: `connection: close` costs the caller a new connection, so only when needed."""
    async with serving(hello) as server:
        client = await server.connect()

        first = await answer_to(client, CHUNKED + chunked(*[b"x"] * 20))
        second = await answer_to(client, get())
        third = await answer_to(client, request("POST", "/", "content-length: 5") + b"abcde")

        for answer in (first, second, third):
            assert answer.status == 200
            assert "connection" not in answer.headers
        client.close()


async def test_unfinished_body_ends_the_connection_after_the_answer() -> None:
    """RFC 9112, section 9.6: say `close`, read on for a while, then close."""
    async with serving(hello, limits=SMALL) as server:
        client = await server.connect()

        answer = await answer_to(client, request("POST", "/", "content-length: 500") + b"begin")

        assert (answer.body, answer.headers["connection"]) == (b"hi", "close")
        assert await client.rest() == b""
        client.close()


async def test_caller_who_sends_all_before_reading_gets_its_answer() -> None:
    """Ours: closing at once would reset the connection and lose the answer."""
    limits = Limits(max_body_bytes=1_000, discard_bytes=64_000_000, discard_s=5.0)
    async with serving(echo, limits=limits) as server:
        client = await server.connect()
        await client.send(request("POST", "/", "content-length: 32000000"))

        answer = await answer_to(client, b"x" * 32_000_000)

        assert answer.status == 413
        client.close()


async def test_a_flood_is_read_no_further_than_the_bound() -> None:
    """Ours: after `discard_bytes` the answer ends and the connection with it."""
    limits = Limits(max_body_bytes=1_000, discard_bytes=10_000, discard_s=60)
    async with serving(echo, limits=limits) as server:
        before = await at_rest()
        client = await server.connect()
        await client.send(CHUNKED)

        flood = (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 20_000
        with pytest.raises(ConnectionError):
            await client.send(flood)

        client.close()
        await eventually(lambda: in_use() == before)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/chat/completions", 413, b'"code":"body_too_large"'),
        ("/v1/messages", 413, b'"type":"request_too_large"'),
    ],
)
@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "announced"])
async def test_body_over_the_limit_is_refused(
    path: str, status: int, code: bytes, is_chunked: bool
) -> None:
    """contracts.md, errors: 413 in the caller's dialect; the connection is closed."""
    async with serving(echo, limits=SMALL) as server:
        client = await server.connect()
        if is_chunked:
            data = request("POST", path, "transfer-encoding: chunked") + chunked(b"x" * 1001)[:-5]
        else:
            data = request("POST", path, "content-length: 1001") + b"x" * 10

        answer = await answer_to(client, data)

        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert code in answer.body
        assert await client.rest() == b""
        client.close()


async def test_announced_body_over_the_limit_does_not_reach_the_app() -> None:
    """Ours: refused by its head."""
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += scope["type"] == "http"

    async with serving(app, limits=SMALL) as server:
        answer = await server.ask(request("POST", "/", "content-length: 1001"))

        assert (answer.status, calls) == (413, 0)


async def test_body_at_the_limit_is_taken() -> None:
    """Ours: the limit itself is allowed, announced or not."""
    async with serving(echo, limits=SMALL) as server:
        for head in (CHUNKED, request("POST", "/", "content-length: 1000")):
            body = chunked(b"x" * 600, b"x" * 400) if head is CHUNKED else b"x" * 1000
            assert (await server.ask(head + body)).body == b"x" * 1000


@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "announced"])
async def test_others_have_a_turn_within_a_large_body(is_chunked: bool) -> None:
    """Ours: libuv alone reads on for eight megabytes, if they are there."""
    size, pieces = 16 << 20, []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            while (message := await receive())["more_body"]:
                pieces.append(len(message["body"]))
            pieces.append(len(message["body"]))
            await hello(scope, receive, send)

    head = CHUNKED if is_chunked else request("POST", "/", f"content-length: {size}")
    body = chunked(*[b"x" * (size // 8)] * 8) if is_chunked else b"x" * size
    async with serving(app) as server:
        with socket.create_connection(("127.0.0.1", server.port), 5) as caller:
            # In a thread, so that there always is something to read.
            await asyncio.to_thread(caller.sendall, head + body)
            answer = await asyncio.to_thread(caller.recv, 1000)

        assert answer.startswith(b"HTTP/1.1 200")
        assert sum(pieces) == size
        assert max(pieces) <= 512 * 1024


async def test_many_tiny_chunks_cost_no_more_than_their_bytes() -> None:
    """Ours: pieces that wait for the app are joined."""
    seen = []
    go_on = asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await go_on.wait()
            while (message := await receive())["more_body"]:
                seen.append(message["body"])
            seen.append(message["body"])
            await hello(scope, receive, send)

    async with serving(late) as server:
        client = await server.connect()
        await client.send(CHUNKED + chunked(*[b"xy"] * 5000))
        await eventually(lambda: server.drain.in_flight == 1)
        await at_rest()
        go_on.set()

        await client.answer()

        assert b"".join(seen) == b"xy" * 5000
        assert len(seen) < 5
        client.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_stalled_body_is_given_up(path: str) -> None:
    """Ours: 408 and the end of the connection after `body_timeout_s`."""
    limits = Limits(body_timeout_s=0.2, body_grace_s=10, discard_s=0.1)
    async with serving(echo, limits=limits) as server:
        client = await server.connect()

        answer = await answer_to(client, request("POST", path, "content-length: 9") + b"half")

        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await client.rest() == b""
        client.close()


async def test_body_that_drips_is_given_up() -> None:
    """Ours: after `body_grace_s` a body must keep a rate, however long it would have."""
    limits = Limits(body_timeout_s=60, body_grace_s=0.2, min_body_bytes_per_s=1e6, discard_s=0.1)
    async with serving(echo, limits=limits) as server:
        client = await server.connect()
        await client.send(request("POST", "/", "content-length: 1000"))

        async def drip() -> None:
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as tasks:
            dripping = tasks.create_task(drip())
            answer = await client.answer()
            dripping.cancel()

        assert answer.status == 408
        client.close()


async def test_slow_answer_to_a_whole_body_is_not_late() -> None:
    """Ours: only the caller's part is timed."""
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await go_on.wait()
            await echo(scope, receive, send)

    limits = Limits(body_timeout_s=0.05, body_grace_s=0.05)
    async with serving(slow, limits=limits) as server:
        client = await server.connect()
        await client.send(request("POST", "/", "content-length: 4") + b"body")
        await asyncio.sleep(0.2)
        go_on.set()

        assert (await client.answer()).body == b"body"
        client.close()


async def test_body_that_is_refused_is_not_asked_for() -> None:
    """RFC 9110, section 10.1.1: the last status may come in place of the first one."""
    async with serving(echo, limits=SMALL) as server:
        client = await server.connect()
        await client.send(request("POST", "/", "content-length: 2000", "expect: 100-continue"))

        assert (await client.answer()).status == 413
        client.close()


async def test_body_waits_until_the_app_before_is_through() -> None:
    """Ours: nobody is there to bound it."""
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        if scope["type"] == "http":
            await go_on.wait()

    async with serving(app) as server:
        client = await server.connect()
        await answer_to(client, get())
        # More than the kernel keeps on both sides.
        data = request("POST", "/", f"content-length: {64 << 20}") + bytes(64 << 20)
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(client.send(data))
            done, _ = await asyncio.wait([sending], timeout=0.5)
            go_on.set()
            answer = await client.answer()
            sending.cancel()

        assert not done
        assert answer.status == 200
        client.close()


async def test_continue_is_said_before_the_body() -> None:
    """RFC 9110, section 10.1.1."""
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(request("POST", "/", "content-length: 4", "expect: 100-continue"))
        interim = await client.until(b"\r\n\r\n")

        assert interim.startswith(b"HTTP/1.1 100 ")
        assert (await answer_to(client, b"body")).body == b"body"
        client.close()
