"""Answers as bytes, and requests that break off or are wrong, over a real socket."""

import asyncio
import gc
import socket
from collections.abc import Callable

import pytest
from starlette.types import Receive, Scope, Send

from cortex_core.server.connection import Connection
from cortex_core.server.exchange import Cut, Exchange, exchange_of
from cortex_core.server.http1 import Answer, AnswerError, Chunks
from tests.server.apps import START, Watched, chunk, echo, hello
from tests.server.harness import at_rest, eventually, get, in_use, post, request, serving

DATE = b"Thu, 01 Jan 1970 00:00:00 GMT"
LENGTH = (b"content-length", b"2")


def answer(method: str = "GET", version: str = "1.1", *, is_last: bool = False) -> Answer:
    return Answer(method, version, is_last=is_last)


@pytest.mark.parametrize(
    ("made", "headers", "sent"),
    [
        (answer(), [LENGTH], b"content-length: 2\r\n@\r\nhi"),
        (answer(), [], b"@transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        (answer("HEAD"), [LENGTH], b"content-length: 2\r\n@\r\n"),
        (answer("HEAD"), [], b"@transfer-encoding: chunked\r\n\r\n"),
        (answer(version="1.0"), [], b"@connection: close\r\n\r\nhi"),
        (answer(is_last=True), [LENGTH], b"content-length: 2\r\n@connection: close\r\n\r\nhi"),
        (answer(), [LENGTH, (b"Connection", b"x, Close")], b"content-length: 2\r\n@connection: close\r\n\r\nhi"),
        (answer(), [LENGTH, (b"Transfer-Encoding", b"chunked")], b"content-length: 2\r\n@\r\nhi"),
        (answer(), [LENGTH, (b"X-Y", b"\xe4 b")], b"content-length: 2\r\nX-Y: \xe4 b\r\n@\r\nhi"),
    ],
)  # fmt: skip
def test_answer_is_framed(made: Answer, headers: list[tuple[bytes, bytes]], sent: bytes) -> None:
    """RFC 9112, sections 6 and 7."""
    data = made.head(200, headers, DATE) + made.piece(b"hi", is_last=True)

    assert data == b"HTTP/1.1 200 \r\n" + sent.replace(b"@", b"date: " + DATE + b"\r\n")
    assert made.is_complete
    assert made.is_last == (b"close" in sent)


@pytest.mark.parametrize("status", [204, 304])
def test_answer_without_a_body_has_none(status: int) -> None:
    """RFC 9110, sections 15.3.5 and 15.4.5."""
    made = answer()

    data = made.head(status, [], DATE) + made.piece(b"hi", is_last=True)

    assert data.endswith(b"\r\n\r\n")
    assert b"transfer-encoding" not in data


def test_no_content_has_no_length() -> None:
    """RFC 9110, section 8.6; a 304 may say how long it would have been."""
    heads = [answer().head(status, [(b"content-length", b"0")], DATE) for status in (204, 304)]

    assert [b"content-length" in head for head in heads] == [False, True]


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nb: c"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"\0"),
        (b"a b", b""),
        (b"", b""),
    ],
)
def test_headers_of_an_answer_cannot_make_others(header: tuple[bytes, bytes]) -> None:
    """Ours: a value may come from another server."""
    with pytest.raises(AnswerError):
        answer().head(200, [header], DATE)


@pytest.mark.parametrize(("first", "last"), [(b"", b"h"), (b"", b"hi!"), (b"hi", b"!")])
def test_answer_is_as_long_as_announced(first: bytes, last: bytes) -> None:
    """Ours: a wrong length would be the next answer's beginning."""
    made = answer()
    made.head(200, [LENGTH], DATE)
    made.piece(first, is_last=False)

    with pytest.raises(AnswerError):
        made.piece(last, is_last=True)


def test_answer_has_one_head_and_one_end() -> None:
    """Ours: an app that mixes up two requests must not reach a caller."""
    made = answer()
    with pytest.raises(AnswerError):
        made.piece(b"", is_last=True)
    made.head(200, [], DATE)
    with pytest.raises(AnswerError):
        made.head(200, [], DATE)
    made.piece(b"", is_last=True)
    with pytest.raises(AnswerError):
        made.piece(b"", is_last=True)


@pytest.mark.parametrize(
    ("path", "begin"),
    [("/v1/chat/completions", b'{"error":{"message"'), ("/v1/messages", b'{"type":"error"')],
)
async def test_malformed_request_is_told_in_the_dialect(path: str, begin: bytes) -> None:
    """contracts.md, errors: h11's refusals had no body."""
    async with serving(echo) as server:
        heads = (get(path, "x y: 1"), get(path, "a: b\r\n c"), post(b"", path, "content-length: 0"))
        chunks = request("POST", path, "transfer-encoding: chunked") + b"1\r\na\r\nx\r\n"
        for message in (*heads, chunks):
            told = await server.ask(message)

            assert (told.status, told.headers["connection"]) == (400, "close")
            assert told.body.startswith(begin)
            assert "x-request-id" in told.headers


async def test_requests_leave_nothing_to_the_collector_of_cycles() -> None:
    """Ours: what they leave is looked through while nobody is served, for some ms."""

    def left() -> int:
        kinds = (Exchange, Connection, Chunks, asyncio.StreamWriter)
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    async with serving(echo) as server:
        # Other tests leave some.
        gc.collect()
        before = left()
        gc.disable()
        try:
            client = await server.connect()
            for _ in range(10):
                await client.send(post(b"x"))
                await client.answer()
                await server.ask(post(b"x"))
                await server.ask(
                    request("POST", "/", "transfer-encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n"
                )
            # This one leaves in the midst of it.
            await client.send(request("POST", "/", "content-length: 2") + b"x")
            client.close()
            await eventually(lambda: left() <= before)
        finally:
            gc.enable()


async def test_head_of_an_answer_does_not_wait_for_its_body() -> None:
    """Ours: it waits for the next turn of the loop, no longer."""
    go_on = asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send(START)
            await go_on.wait()
            await send(chunk(b"hi", more=False))

    async with serving(late) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"\r\n\r\n")
        go_on.set()

        assert await client.until(b"0\r\n\r\n") == b"2\r\nhi\r\n0\r\n\r\n"


async def test_answer_that_never_began_is_a_500() -> None:
    """Ours: for an app that returns without a word."""

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    async with serving(silent) as server:
        told = await server.ask(get())

        assert (told.status, told.headers["connection"]) == (500, "close")


@pytest.mark.parametrize("how", [socket.socket.close, lambda s: s.shutdown(socket.SHUT_WR)])
@pytest.mark.parametrize("sent", [b"", get(), get() * 50, post(b"x" * 1000), get()[:9]])
async def test_caller_who_left_before_it_was_accepted_leaves_nothing(
    how: Callable[[socket.socket], None], sent: bytes
) -> None:
    """Ours: bytes and end may be there before our own layer is."""
    app = Watched(is_started=False)
    async with serving(app) as server:
        before = await at_rest()
        # Without a turn of the loop in between.
        caller = socket.create_connection(("127.0.0.1", server.port))
        caller.sendall(sent)
        how(caller)

        await at_rest()
        caller.close()
        await eventually(lambda: in_use() == before)
        assert app.finished == 0


async def test_requests_behind_the_last_are_not_read() -> None:
    """RFC 9112, section 9.6."""
    async with serving(hello) as server:
        client = await server.connect()
        await client.send(get("/", "connection: close") + get())

        assert (await client.answer()).headers["connection"] == "close"
        assert await client.rest() == b""


async def test_app_that_was_not_cancelled_by_us_takes_nobody_along() -> None:
    """Ours: what it waited for was cancelled; the answer says 500."""

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    async with serving(waiting) as server:
        assert (await server.ask(get())).status == 500


async def test_cancellation_that_nobody_saw_is_not_the_next_request_s() -> None:
    """Ours: an app that is cancelled as it ends, with another request behind it."""

    async def ending(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/":
            await asyncio.sleep(0)
        await hello(scope, receive, send)
        if scope["type"] == "http" and scope["path"] == "/late":
            exchange_of(scope).cancel(Cut.DRAIN)

    async with serving(ending) as server:
        client = await server.connect()
        await client.send((get("/late") + get("/")) * 2)
        statuses = [(await client.answer()).status for _ in range(4)]

    assert statuses == [200] * 4
