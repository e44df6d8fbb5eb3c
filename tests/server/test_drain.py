"""Going down: nothing new, what runs may finish, the rest is told and cut, in bounded time."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from cortex_core.server.drain import EXEMPT_PATHS, Drain
from cortex_core.server.exchange import Cut, exchange_of
from tests.server.apps import START, Watched, chunk, hello
from tests.server.harness import WAIT_S, eventually, get, serving


async def drained(drain: Drain, timeout_s: float = 5.0) -> int:
    async with asyncio.timeout(WAIT_S):
        return await drain.drain(timeout_s)


async def test_running_requests_finish() -> None:
    """Ours: a drain ends as soon as the last request does."""
    app = Watched()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"begin")

        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(drained(server.drain))
            await eventually(lambda: server.drain.is_draining)
            app.go_on.set()

        assert drain.result() == 0
        await client.until(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/chat/completions", 503, b'"code":"draining"'),
        ("/v1/messages", 529, b'"type":"overloaded_error"'),
    ],
)
async def test_new_requests_are_refused(path: str, status: int, text: bytes) -> None:
    """contracts.md, errors: draining; with Retry-After, and the connection is closed."""
    async with serving(hello) as server:
        client = await server.connect()
        await client.send(get("/"))
        assert (await client.answer()).status == 200
        await drained(server.drain)

        await client.send(get(path))

        answer = await client.answer()
        assert answer.status == status
        assert text in answer.body
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("5", "close")
        assert await client.rest() == b""


@pytest.mark.parametrize("path", sorted(EXEMPT_PATHS))
async def test_health_is_answered_to_the_last(path: str) -> None:
    """Ours: whoever watches must see that we drain."""
    async with serving(hello) as server:
        await drained(server.drain)

        assert (await server.ask(get(path))).status == 200


async def test_request_in_flight_is_the_last_of_its_connection() -> None:
    """Ours: an answer that begins while we drain says `connection: close`."""
    app = Watched(is_started=False)
    async with serving(app) as server:
        client = await server.connect()
        await client.send(get())
        await eventually(lambda: app.running == 1)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(drained(server.drain))
            await eventually(lambda: server.drain.is_draining)
            app.go_on.set()
            answer = await client.answer()

        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_stream_that_is_cut_can_say_so() -> None:
    """Ours: the app sees why it is cancelled, and its last event reaches the caller."""

    async def relay(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send(START)
        await send(chunk(b"data: begin\n\n"))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if exchange_of(scope).cut is Cut.DRAIN:
                await send(chunk(b"event: error\n\n", more=False))
            raise

    async with serving(relay) as server:
        client = await server.connect()
        await client.send(get("/v1/messages"))
        await client.until(b"begin")

        assert await drained(server.drain, 0.05) == 1

        assert b"event: error" in await client.until(b"0\r\n\r\n")


async def test_stream_that_is_cut_and_says_nothing_does_not_look_complete() -> None:
    """Ours: no closing chunk."""
    app = Watched()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"begin")

        assert await drained(server.drain, 0.05) == 1

        assert not (await client.rest()).endswith(b"0\r\n\r\n")
        assert app.cancelled == 1


async def test_request_that_is_cut_before_its_answer_is_told() -> None:
    """Ours: it may try again elsewhere."""
    app = Watched(is_started=False)
    async with serving(app) as server:
        client = await server.connect()
        await client.send(get())
        await eventually(lambda: app.running == 1)

        await drained(server.drain, 0.05)

        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert b'"draining"' in answer.body


async def test_an_app_that_will_not_end_does_not_hold_the_drain() -> None:
    """Ours: a cut request has `cut_grace_s`, no more."""
    go_on = asyncio.Event()

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    async with serving(stubborn, drain=Drain(cut_grace_s=0.05)) as server:
        client = await server.connect()
        await client.send(get())
        await eventually(lambda: server.drain.in_flight == 1)

        assert await drained(server.drain, 0.05) == 1
        go_on.set()


@pytest.mark.parametrize("ending", ["finish", "raise", "leave", "cut"])
async def test_requests_are_counted_however_they_end(ending: str) -> None:
    """Ours: a count that leaks would hold every later shutdown."""
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await go_on.wait()
        if ending == "raise":
            raise RuntimeError("as planned")
        await hello(scope, receive, send)

    async with serving(app) as server:
        clients = [await server.connect() for _ in range(10)]
        for client in clients:
            await client.send(get())
        await eventually(lambda: server.drain.in_flight == 10)

        if ending == "leave":
            for client in clients:
                client.close()
        elif ending == "cut":
            await drained(server.drain, 0.01)
        else:
            go_on.set()

        await eventually(lambda: server.drain.in_flight == 0)


async def test_shutdown_with_live_streams_is_bounded() -> None:
    """Hypercorn waits for every open connection before its own time limit begins."""
    app = Watched(has_pieces=True)
    async with serving(app, drain_timeout_s=0.2, keep_alive_s=60) as server:
        clients = [await server.connect() for _ in range(10)]
        for client in clients:
            await client.send(get())
            await client.until(b"begin")
        idle = await server.connect()

        server.shutdown.ask()

        async with asyncio.timeout(WAIT_S):
            await server.is_over.wait()
        assert app.cancelled == 10
        assert await idle.rest() == b""


async def test_second_wish_shortens_the_drain() -> None:
    """Ours: a second SIGTERM means now."""
    app = Watched()
    async with serving(app, drain_timeout_s=600) as server:
        client = await server.connect()
        await client.send(get())
        await client.until(b"begin")

        server.shutdown.ask()
        await eventually(lambda: server.drain.is_draining)
        server.shutdown.ask()

        async with asyncio.timeout(WAIT_S):
            await server.is_over.wait()
        assert app.cancelled == 1
