"""A caller who leaves stops the work that was done for it, whatever the work was doing."""

import asyncio
import socket
from collections.abc import Callable

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.apps import START, Watched, chunk, echo, hello
from tests.server.harness import (
    WAIT_S,
    Client,
    at_rest,
    eventually,
    get,
    in_use,
    post,
    request,
    serving,
)


def half_close(client: Client) -> None:
    client.sock.shutdown(socket.SHUT_WR)


LEAVING: dict[str, Callable[[Client], None]] = {
    "fin": Client.close,
    "rst": Client.reset,
    "half-close": half_close,
}
by_leaving = pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)


@by_leaving
@pytest.mark.parametrize("has_pieces", [True, False], ids=["sending", "waiting"])
async def test_stream_is_cancelled(leave: Callable[[Client], None], has_pieces: bool) -> None:
    """Ours: in mid-stream, between pieces or while they flow; a half-close is an abort."""
    app = Watched(has_pieces=has_pieces)
    async with serving(app) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"begin")

        leave(client)

        await eventually(lambda: app.running == 0)
        assert (app.cancelled, app.finished) == (1, 0)
        client.close()


@by_leaving
@pytest.mark.parametrize(
    "message",
    [get(), post(b"x" * 1000), post(b"x" * 300_000)],
    ids=["get", "post", "large-post"],
)
async def test_prefill_and_plain_answers_are_cancelled(
    leave: Callable[[Client], None], message: bytes
) -> None:
    """Ours: nothing has been sent yet, as in prefill, or as in a call without a stream."""
    app = Watched(is_started=False)
    async with serving(app) as server:
        client = await server.connect()
        await client.send(message)
        await eventually(lambda: app.running == 1)

        leave(client)

        await eventually(lambda: app.running == 0)
        assert (app.cancelled, app.finished) == (1, 0)
        client.close()


async def test_leaving_in_the_middle_of_the_body_is_noticed() -> None:
    """Ours: an app that waits for the rest of the body is cancelled too."""
    ends = []

    async def reader(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await echo(scope, receive, send)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

    async with serving(reader) as server:
        client = await server.connect()
        await client.send(request("POST", "/", "content-length: 100") + b"half")
        await eventually(lambda: server.drain.in_flight == 1)

        client.close()

        await eventually(lambda: ends == ["cancelled"])


async def test_sending_to_nobody_does_not_stop_the_loop() -> None:
    """Hypercorn's `send` neither raises nor yields once the caller has left."""
    errors = []

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/hello":
            await hello(scope, receive, send)
            return
        await send(START)
        for _ in range(1_000_000):
            try:
                await send(chunk(b"x" * 10))
            except asyncio.CancelledError:
                errors.append("cancelled")
            except OSError as error:
                errors.append(type(error).__name__)
                if len(errors) > 100:
                    return

    async with serving(stubborn) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"xxxxx")

        client.reset()

        answer = await server.ask(get("/hello"))
        assert answer.body == b"hi"
        await eventually(lambda: server.drain.in_flight == 0)
        assert errors[-1] == "ClientGoneError"


async def test_a_sender_that_never_waits_lets_others_run() -> None:
    """Ours: `send` gives way every so often even if the socket takes everything."""

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/hello":
            await hello(scope, receive, send)
            return
        await send(START)
        while True:
            await send(chunk(b""))

    async with serving(busy, drain_timeout_s=0.1) as server:
        client = await server.connect()
        await client.send(get())
        await eventually(lambda: server.drain.in_flight == 1)

        answer = await server.ask(get("/hello"))

        assert answer.body == b"hi"
        client.close()
        await eventually(lambda: server.drain.in_flight == 0)


@pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("waiting", [1, 1000])
async def test_pipelining_and_leaving_leaves_nothing_behind(
    is_streaming: bool, waiting: int
) -> None:
    """Hypercorn does not see who left behind a request that waits, and keeps its task for ever."""
    app = Watched(is_started=is_streaming, has_pieces=is_streaming)
    async with serving(app) as server:
        before = await at_rest()
        clients = [await server.connect() for _ in range(20)]
        for client in clients:
            await client.send(get() * (1 + waiting))
        await eventually(lambda: app.running == 20)

        for client in clients:
            client.close()

        await eventually(lambda: in_use() == before)
        assert (app.cancelled, app.finished) == (20, 0)


async def test_pipelined_requests_are_answered_in_order() -> None:
    """RFC 9112, section 9.3.2."""
    async with serving(echo) as server:
        client = await server.connect()

        bodies = [b"%d" % number for number in range(500)]

        await client.send(b"".join(map(post, bodies)))

        assert [(await client.answer()).body for _ in bodies] == bodies
        client.close()


async def test_closed_idle_connections_are_let_go_at_once() -> None:
    """Hypercorn holds them in CLOSE-WAIT until the keep-alive time is over."""
    async with serving(hello, keep_alive_s=60) as server:
        before = await at_rest()
        clients = [await server.connect() for _ in range(20)]
        for client in clients:
            await client.send(get())
            await client.answer()

        for client in clients:
            client.close()

        await eventually(lambda: in_use() == before)


async def test_work_after_a_complete_answer_goes_on() -> None:
    """Ours: the server says "disconnect" after every answer; that cancels nothing."""
    done = asyncio.Event()

    async def background(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await hello(scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            await asyncio.sleep(0)
            done.set()

    async with serving(background) as server:
        answer = await server.ask(get())

        assert answer.body == b"hi"
        async with asyncio.timeout(WAIT_S):
            await done.wait()
