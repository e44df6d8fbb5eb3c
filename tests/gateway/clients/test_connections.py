"""Which connections to nodes are used again, and what becomes of the others."""

import asyncio
import resource
import socket
import time

import pytest

from cortex_core.routing.retry import Failure
from cortex_gateway.clients import dial, pool
from cortex_gateway.clients.upstream import HttpUpstream
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.settings import Timeouts
from tests.gateway.clients.scripted import (
    HEAD,
    JSON,
    body_of,
    posted,
    request_of,
    says,
    serving,
    until_closed,
    upstream,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
MANY = 1000


class Node:
    """Answers every request with the same, and counts connections; they may be told apart."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.connections = 0
        self.ended = 0
        self.changed = asyncio.Event()
        self.requests: list[int] = []
        """Number of the connection that each came on."""
        self.writers: list[asyncio.StreamWriter] = []

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        self.writers.append(writer)
        try:
            while True:
                await request_of(reader)
                self.requests.append(number)
                writer.write(self.answer)
        finally:
            self.ended += 1
            self.changed.set()

    async def until_ended(self, count: int) -> None:
        while self.ended < count:
            self.changed.clear()
            await self.changed.wait()


async def ask(client: HttpUpstream, url: str) -> bytes:
    async with posted(client, url) as answer:
        return await body_of(answer)


async def until_left(client: HttpUpstream, count: int) -> None:
    """Return when the client has noticed that all but `count` of its connections have ended."""
    while client.connections > count:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


async def until_gone(client: HttpUpstream) -> None:
    await until_left(client, 0)


async def until_idle(client: HttpUpstream) -> None:
    """Return when a connection may be used again."""
    while not client.idle:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)


async def test_the_connection_that_was_used_last_is_used_next() -> None:
    """Ours: so that what a burst has left behind grows old."""
    node = Node(answer=HEAD)
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        answers = [await client.post(url, JSON, b"{}") for _ in range(3)]
        # They end in another order than they began.
        for number in (2, 0, 1):
            node.writers[number].write(b"0\r\n\r\n")
            assert await body_of(answers[number]) == b""
        node.answer = OK
        for _ in range(3):
            await ask(client, url)

        assert client.connections == 3
    assert node.requests == [0, 1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"),
        OK.replace(b"OK\r\n", b"OK\r\nConnection: x, Close\r\n"),
        OK.replace(b"1.1", b"1.0"),
        OK.replace(b"OK\r\n", b"OK\r\nkeep-alive: timeout=1\r\n"),
        OK + b"more",
        OK + OK,
    ],
    ids=["close", "list", "HTTP/1.0", "short patience", "more", "twice"],
)
async def test_connection_that_cannot_be_trusted_is_closed(answer: bytes) -> None:
    """RFC 9112, section 9.6; and what nobody asked for might be taken for the next answer."""
    node = Node(answer)
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        assert [await ask(client, url) for _ in range(2)] == [b"ok", b"ok"]
        await node.until_ended(2)
        await until_gone(client)

    assert node.requests == [0, 1]


async def test_idle_connection_is_closed_in_time() -> None:
    """Ours: by the gateway, before the node does it, and not while a request is on its way."""
    node = Node()
    async with serving(node.script) as url, upstream(Timeouts(keep_alive_s=0.05)) as client:
        await ask(client, url)
        await node.until_ended(1)

        await until_gone(client)
        assert await ask(client, url) == b"ok"


async def test_nodes_patience_counts_if_it_is_shorter() -> None:
    """RFC 2068, section 19.7.1: as servers still send it."""
    node = Node(OK.replace(b"OK\r\n", b"OK\r\nkeep-alive: max=9, timeout=2\r\n"))
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        await ask(client, url)
        await ask(client, url)
        assert node.connections == 1

        await node.until_ended(1)
        await until_gone(client)


@pytest.mark.parametrize("last", [b"", b"HTTP/1.1 408 Too slow\r\n\r\n"], ids=["end", "words"])
async def test_idle_connection_that_ends_or_speaks_is_left_alone(last: bytes) -> None:
    """Ours: what a node says unasked is no answer to the next request."""
    node = Node()
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        await ask(client, url)
        node.writers[0].write(last)
        if not last:
            node.writers[0].close()
        await until_gone(client)

        assert await ask(client, url) == b"ok"
    assert node.requests == [0, 1]


async def test_request_is_not_sent_again_by_the_client() -> None:
    """Ours: nobody knows whether it was begun; the retry policy decides (`routing.retry`)."""
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await request_of(reader)
        writer.write(OK)
        await request_of(reader)
        requests += 1

    async with serving(script) as url, upstream(Timeouts()) as client:
        await ask(client, url)
        with pytest.raises(UpstreamFailure) as caught:
            await ask(client, url)

        assert caught.value.failure is Failure.CUT_BEFORE_ANSWER
        await until_gone(client)
    assert requests == 1


async def test_node_that_was_started_anew_is_reached() -> None:
    """Ours: connections to the old one are no obstacle."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)
        await until_closed(reader)
        writer.close()

    writers: list[asyncio.StreamWriter] = []

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await answer(reader, writer)

    server = await asyncio.start_server(first, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with upstream(Timeouts()) as client:
        assert await ask(client, f"http://127.0.0.1:{port}/") == b"ok"
        server.close()
        writers[0].transport.abort()
        await until_gone(client)
        with pytest.raises(UpstreamFailure) as caught:
            await ask(client, f"http://127.0.0.1:{port}/")
        assert caught.value.failure is Failure.CONNECT

        server = await asyncio.start_server(answer, "127.0.0.1", port)
        assert await ask(client, f"http://127.0.0.1:{port}/") == b"ok"
    server.close()


async def test_idle_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the one that was idle for longest goes."""
    monkeypatch.setattr(pool, "MAX_IDLE", 2)
    node = Node(answer=HEAD)
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        answers = [await client.post(url, JSON, b"{}") for _ in range(5)]
        for answer, writer in zip(answers, node.writers, strict=True):
            writer.write(b"0\r\n\r\n")
            assert await body_of(answer) == b""

        await node.until_ended(3)
        await until_left(client, 2)
        node.answer = OK
        assert await ask(client, url) == b"ok"
    assert node.requests[-1] == 4


async def test_the_end_of_the_gateway_closes_all() -> None:
    """Ours: idle ones, and those that somebody still reads from."""
    ended = 0
    all_ended = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        await request_of(reader)
        writer.write(OK if ended else HEAD)
        await until_closed(reader)
        ended += 1
        all_ended.set()

    async with serving(script) as url:
        async with upstream(Timeouts()) as client:
            reading = await client.post(url, JSON, b"{}")
        await all_ended.wait()

        with pytest.raises(UpstreamFailure):
            await reading.read()
        assert client.connections == 0


async def test_a_thousand_at_once() -> None:
    """Ours: no limit but that on files, no request waits for another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * MANY:
        pytest.skip("too few files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * MANY), hard))
    arrived = 0
    all_arrived = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await request_of(reader)
        arrived += 1
        if arrived == MANY:
            all_arrived.set()
        await all_arrived.wait()
        writer.write(OK)
        await until_closed(reader)

    patient = Timeouts(connect_s=30.0)
    async with asyncio.timeout(50), serving(script) as url:
        async with upstream(patient, limit_s=50) as client, asyncio.TaskGroup() as tasks:
            url = url.replace("127.0.0.1", "localhost")
            asking = [tasks.create_task(ask(client, url)) for _ in range(MANY)]
        assert [task.result() for task in asking] == [b"ok"] * MANY
        assert client.connections == 0


async def test_early_refusal_of_a_large_request_is_read() -> None:
    """RFC 9112, section 9.5: the answer counts, and nothing more is sent there."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too large\r\ncontent-length: 2\r\n\r\nno")
        # Nothing is read meanwhile, so that the request cannot have been sent whole.
        await closing.wait()

    closing = asyncio.Event()
    async with serving(script) as url, upstream(Timeouts()) as client:
        async with posted(client, url, b"x" * (64 << 20)) as answer:
            assert (answer.status, await body_of(answer)) == (413, b"no")
        await until_gone(client)
        closing.set()


async def test_what_follows_the_first_kind_of_answer_is_taken() -> None:
    """RFC 9110, section 15.2: any number of interim answers, more than Python calls in a row too."""
    interim = b"HTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n" * 2000
    async with serving(says(interim, OK)) as url, upstream() as client:
        assert await ask(client, url) == b"ok"


@pytest.mark.parametrize(
    ("late", "connections"),
    [(b"0\r\n\r\n", 1), (b"1\r\nx\r\n0\r\n\r\n", 2), (b"0\r\n\r\nx", 2)],
    ids=["the end", "more", "more behind it"],
)
async def test_answer_that_is_left_may_still_end(late: bytes, connections: int) -> None:
    """Ours: an engine's terminator comes a moment before the end of its answer."""
    node = Node(answer=HEAD)
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        answer = await client.post(url, JSON, b"{}")
        answer.close(linger_s=60)
        answer.close()
        node.answer = OK
        node.writers[0].write(late)
        # By what comes after it, which takes the same way.
        if connections > 1:
            await until_gone(client)
        else:
            await until_idle(client)
        await ask(client, url)

    assert node.connections == connections


async def test_answer_that_is_left_has_little_time() -> None:
    """Ours: nobody waits for it, and its connection is another's place."""
    node = Node(answer=HEAD)
    async with serving(node.script) as url, upstream(Timeouts()) as client:
        (await client.post(url, JSON, b"{}")).close(linger_s=0.05)
        await node.until_ended(1)
        await until_gone(client)


@pytest.mark.parametrize("bad", ["a\r\nb: c", "a\nb", "a\0b", "a\rb"])
async def test_header_of_several_lines_is_a_bug_of_ours(bad: str) -> None:
    """Ours: it would become another header, or another request."""
    async with upstream() as client:
        with pytest.raises(ValueError, match="one line"):
            await client.post("http://127.0.0.1:9/", [("x", bad)], b"{}")


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://{}/v1/x?a=b", "/v1/x?a=b", "{}"),
        ("http://{}", "/", "{}"),
        ("http://{}/a b", "/a%20b", "{}"),
    ],
)
async def test_the_url_is_asked_for(url: str, target: str, host: str) -> None:
    """RFC 9112, section 3.2."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await request_of(reader))[0])
        writer.write(OK)

    async with serving(script) as base, upstream() as client:
        place = base.split("/")[2]
        await ask(client, url.format(place))

    assert heads[0].startswith(f"POST {target} HTTP/1.1\r\nhost: {host.format(place)}\r\n".encode())


async def test_a_connection_that_came_while_the_loop_stood_still_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours: a stall of the gateway's own is no fault of the node's."""
    node = Node()
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        opening = dial.Dialer.open

        def stand_still() -> None:
            theirs.send(b"x")
            time.sleep(0.5)

        async def open_late(dialer: dial.Dialer) -> socket.socket:
            opened = await opening(dialer)
            loop.call_soon(stand_still)
            await loop.sock_recv(ours, 1)
            return opened

        monkeypatch.setattr(dial.Dialer, "open", open_late)
        async with serving(node.script) as url, upstream(Timeouts(connect_s=0.2)) as client:
            assert await ask(client, url) == b"ok"
