"""Requests to neurons' inference paths: what arrives, and how failures are told apart."""

import asyncio
import itertools

import pytest

from cortex_core.routing.retry import Failure
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.settings import Timeouts
from tests.gateway.clients.scripted import (
    HASTY,
    HEAD,
    JSON,
    Script,
    body_of,
    posted,
    request_of,
    says,
    serving,
    until_closed,
    upstream,
)


async def failure_of(script: Script) -> tuple[Failure, list[bytes]]:
    """Return how a request to `script` fails, and the chunks that came before."""
    chunks: list[bytes] = []

    async def read(url: str) -> None:
        async with upstream() as client, posted(client, url) as answer:
            while chunk := await answer.read():
                chunks.append(chunk)

    async with serving(script) as url:
        with pytest.raises(UpstreamFailure) as caught:
            await read(url)
    return caught.value.failure, chunks


async def test_refused_connection_is_told_as_such() -> None:
    """Ours: nothing was sent, so another replica may be tried."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()

    async with upstream() as client:
        with pytest.raises(UpstreamFailure) as caught:
            await client.post(f"http://127.0.0.1:{port}/", JSON, b"{}")

    assert caught.value.failure is Failure.CONNECT


async def test_name_that_does_not_resolve_is_a_failed_connection() -> None:
    """RFC 6761: `.invalid` never resolves."""
    async with upstream(Timeouts(connect_s=4)) as client:
        with pytest.raises(UpstreamFailure) as caught:
            await client.post("http://node.invalid:1/", JSON, b"{}")

    assert caught.value.failure is Failure.CONNECT


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (says(), Failure.CUT_BEFORE_ANSWER),
        (says(then_wait=True), Failure.TIMEOUT),
        (says(b"hello\r\n\r\n"), Failure.BAD_ANSWER),
        (says(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 40_000 + b"\r\n\r\n"), Failure.BAD_ANSWER),
    ],
    ids=["cut", "silent", "no HTTP", "huge head"],
)
async def test_failure_before_an_answer(script: Script, failure: Failure) -> None:
    """Ours: the retry policy depends on the difference."""
    assert await failure_of(script) == (failure, [])


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (says(HEAD, b"3\r\nabc\r\n"), Failure.CUT_MID_ANSWER),
        (says(HEAD, b"3\r\nabc\r\n", then_wait=True), Failure.TIMEOUT),
    ],
    ids=["cut", "silent"],
)
async def test_failure_within_an_answer(script: Script, failure: Failure) -> None:
    """Ours: what came before is delivered, and the end is not taken for a good one."""
    assert await failure_of(script) == (failure, [b"abc"])


async def test_answer_that_is_shorter_than_announced_is_cut() -> None:
    """RFC 9112 section 8: an incomplete message."""
    script = says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")

    assert (await failure_of(script))[0] is Failure.CUT_MID_ANSWER


async def test_answer_comes_as_it_was_sent() -> None:
    """Ours: status, headers in order, bytes neither unpacked nor redirected."""
    script = says(
        b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-encoding: gzip\r\n"
        b"X-A: 1\r\nx-a: 2\r\ncontent-length: 3\r\n\r\nabc"
    )

    async with (
        serving(script) as url,
        upstream() as client,
        posted(client, url) as answer,
    ):
        body = await body_of(answer)

    assert (answer.status, body) == (307, b"abc")
    assert [pair for pair in answer.headers if pair[0] == "x-a"] == [("x-a", "1"), ("x-a", "2")]


async def test_request_has_the_given_headers_and_none_of_the_library() -> None:
    """Ours: the caller's user agent stays the caller's, and nobody packs the answer."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await request_of(reader))[0])
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with (
        serving(script) as url,
        upstream() as client,
    ):
        (await client.post(url, [*JSON, ("traceparent", "00-ab")], b"{}")).close()

    head = heads[0].lower()
    assert b"traceparent: 00-ab" in head
    assert b"accept-encoding: identity" in head
    assert b"user-agent" not in head


@pytest.mark.parametrize("cuts", [(), (0, 1), (1, 300_000, 300_040)])
@pytest.mark.parametrize("size", [0, 1 << 18, 1 << 20, (1 << 20) + 1, 5 << 20])
async def test_body_arrives_whole(size: int, cuts: tuple[int, ...]) -> None:
    """Ours: in one piece or in several, empty ones among them."""
    bodies: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await request_of(reader))[1])
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    edges = (0, *cuts, size)
    pieces = tuple(memoryview(body)[begin:end] for begin, end in itertools.pairwise(edges))
    async with (
        serving(script) as url,
        upstream(Timeouts()) as client,
        posted(client, url, pieces if cuts else body),
    ):
        pass

    assert bodies == [body]


async def test_leaving_early_closes_the_connection() -> None:
    """Ours: that is what aborts the work in the engine."""
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD + b"3\r\nabc\r\n")
        await until_closed(reader)
        closed.set()

    async with serving(script) as url, upstream(Timeouts()) as client:
        async with posted(client, url) as answer:
            await answer.read()
        await closed.wait()


async def test_cancelling_before_the_answer_closes_the_connection() -> None:
    """Ours: a caller that leaves during prefill frees the engine."""
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await request_of(reader)
        arrived.set()
        await until_closed(reader)
        closed.set()

    async with (
        serving(script) as url,
        upstream(Timeouts()) as client,
        asyncio.TaskGroup() as tasks,
    ):
        task = tasks.create_task(client.post(url, JSON, b"{}"))
        await arrived.wait()
        task.cancel()
        await closed.wait()


async def test_connection_of_a_finished_answer_is_used_again() -> None:
    """Ours: a handshake for each request would cost more than the request."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await request_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with serving(script) as url, upstream(Timeouts()) as client:
        for _ in range(3):
            async with posted(client, url) as answer:
                assert await body_of(answer) == b"ok"

    assert connections == 1


async def test_slow_stream_outlives_the_limits_on_silence() -> None:
    """Ours: limits are on silence, not on the whole (the seed cut long answers at 300 s)."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD)
        for _ in range(4):
            await asyncio.sleep(HASTY.idle_s * 0.4)
            writer.write(b"1\r\na\r\n")
        writer.write(b"0\r\n\r\n")

    async with (
        serving(script) as url,
        upstream() as client,
        posted(client, url) as answer,
    ):
        body = await body_of(answer)

    assert body == b"aaaa"
