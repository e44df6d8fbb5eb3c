"""What is held of bodies is shown, and not any longer than it is held."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.server.limits import Limits
from cortex_core.server.vitals import Vitals
from tests.server.apps import hello
from tests.server.harness import WAIT_S, Server, eventually, post, request, serving
from tests.server.test_body import CHUNKED, SMALL, chunked


class Holding:
    """An app that reads its body, or refuses to, and then waits.

    Args:
        reads: whether it reads.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while self.reads and (await receive()).get("more_body", False):
            pass
        await self.go_on.wait()
        await hello(scope, receive, send)


BODY = b"x" * 300_000


@pytest.mark.parametrize("data", [post(BODY), CHUNKED + chunked(*[BODY[:1000]] * 300)])
async def test_bodies_are_counted_until_their_requests_end(data: bytes) -> None:
    """Issue: buffers as a metric; whoever keeps the connection has no body in memory."""
    app = Holding()
    async with shown(app) as (server, value):
        clients = [await server.connect() for _ in range(2)]
        for client in clients:
            await client.send(data)
        await eventually(lambda: value() == 2 * len(BODY))

        app.go_on.set()
        answers = [await client.answer() for client in clients]

        assert [answer.status for answer in answers] == [200, 200]
        assert "connection" not in answers[0].headers
        assert value() == 0
        for client in clients:
            client.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_bodies_of_callers_who_have_left_are_not_counted(reads: bool) -> None:
    """Issue: as above; also of a body that has not come to its end, read or not."""
    async with shown(Holding(reads=reads)) as (server, value):
        whole, part = [await server.connect() for _ in range(2)]
        await whole.send(post(BODY))
        await part.send(post(BODY)[:-1000])
        await eventually(lambda: value() == 2 * len(BODY) - 1000)

        whole.close()
        await eventually(lambda: value() == len(BODY) - 1000)
        part.close()
        await eventually(lambda: value() == 0)


@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "announced"])
async def test_bodies_that_are_refused_are_not_counted(is_chunked: bool) -> None:
    """Issue: as above."""
    app = Holding()
    async with shown(app, SMALL) as (server, value):
        client = await server.connect()
        if is_chunked:
            await client.send(CHUNKED + chunked(b"x" * 900)[:-5])
            await eventually(lambda: value() == 900)
            await client.send(chunked(b"x" * 101)[:-5])
        else:
            await client.send(request("POST", "/", "content-length: 1001") + b"x" * 10)
        answer = await client.answer()

        assert answer.status == 413
        assert value() == 0
        client.close()


async def test_body_that_nobody_wants_is_not_counted() -> None:
    """Ours: what comes after the answer is read and thrown away."""
    limits = Limits(discard_bytes=10_000_000, discard_s=WAIT_S)
    app = Holding(reads=False)
    async with shown(app, limits) as (server, value):
        client = await server.connect()
        await client.send(post(BODY)[:-1])
        await eventually(lambda: value() == len(BODY) - 1)

        app.go_on.set()
        await eventually(lambda: value() == 0)
        await client.send(BODY[-1:])

        assert (await client.answer()).status == 200
        assert value() == 0
        client.close()


@asynccontextmanager
async def shown(
    app: ASGIApp, limits: Limits | None = None
) -> AsyncIterator[tuple[Server, Callable[[], float]]]:
    """Serve `app`; yield the server, and what returns the gauge."""
    registry = CollectorRegistry()
    async with serving(app, limits=limits) as server:
        Vitals(registry, "cortex", server.drain).of(server.listeners)
        yield server, lambda: registry.get_sample_value("cortex_request_body_bytes") or 0
