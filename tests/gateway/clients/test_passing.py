"""Answers on their way through: pace, silence, ends and cancellation."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from cortex_core.routing.retry import Failure
from cortex_gateway.clients.upstream import HttpUpstream
from cortex_gateway.ports import UpstreamAnswer, UpstreamFailure
from cortex_gateway.settings import Timeouts
from tests.gateway.clients.scripted import (
    HASTY,
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

MUCH_BYTES = 64 << 20
# Both ends share the loop: when so many of its turns move nothing, nothing moves.
STILL_TURNS = 500


class Stop(Exception):  # noqa: N818 - raised by what takes, to end
    """Whoever takes pieces has enough."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_pieces_are_passed_after_what_was_read() -> None:
    """Ours: what `read` has not returned comes first."""
    got: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD + chunk(b"one"))
        await first_read.wait()
        writer.write(chunk(b"two"))
        writer.write(chunk(b"three") + b"0\r\n\r\n")

    def take(data: bytes) -> bool:
        got.append(data)
        return True

    first_read = asyncio.Event()
    async with serving(script) as url, upstream() as client, posted(client, url) as answer:
        assert await answer.read() == b"one"
        first_read.set()
        await answer.pass_to(take)

        assert b"".join(got) == b"twothree"
        assert await answer.read() == b""


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b""], ids=["good end", "cut"])
async def test_who_refuses_gets_the_rest_when_it_resumes(end: bytes) -> None:
    """Ours: nothing is given meanwhile, nothing is lost, and the silence is not the node's."""
    got: list[bytes] = []
    refused = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD + chunk(b"one"))
        await refused.wait()
        writer.write(chunk(b"two") + end)

    def take(data: bytes) -> bool:
        got.append(data)
        refused.set()
        return len(got) > 1

    async def resume(answer: UpstreamAnswer) -> None:
        await refused.wait()
        # Longer than a node may be silent.
        await asyncio.sleep(1.5 * HASTY.idle_s)
        assert got == [b"one"]
        answer.resume()

    async with serving(script) as url, upstream() as client, posted(client, url) as answer:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(resume(answer))
            passing = tasks.create_task(failure_of(answer.pass_to(take)))
        assert passing.result() is (None if end else Failure.CUT_MID_ANSWER)
    assert got == [b"one", b"two"]


async def failure_of(awaitable: Awaitable[object]) -> Failure | None:
    try:
        await awaitable
    except UpstreamFailure as error:
        return error.failure
    return None


async def test_passing_that_was_ended_leaves_nothing_to_the_collector_of_cycles() -> None:
    """Ours: each stream ends like this, and what it leaves is looked through while all wait."""

    async def ended(answer: UpstreamAnswer) -> weakref.ref[Stop]:
        def take(data: bytes) -> bool:
            raise Stop

        try:
            await answer.pass_to(take)
        except Stop as stop:
            return weakref.ref(stop)
        raise AssertionError("it was not raised")

    answered = HEAD + chunk(b"one") + b"0\r\n\r\n"
    async with serving(says(answered, then_wait=True)) as url, upstream() as client:
        gc.disable()
        try:
            async with posted(client, url) as answer:
                left = (await ended(answer))()
        finally:
            gc.enable()

    assert left is None


async def test_what_take_raises_is_raised_and_the_rest_can_be_read() -> None:
    """Ours: so the connection of a stream whose last event was seen can be used again."""

    def take(data: bytes) -> bool:
        raise Stop

    answered = HEAD + chunk(b"one") + b"0\r\n\r\n"
    async with serving(says(answered, then_wait=True)) as url, upstream() as client:
        async with posted(client, url) as answer:
            with pytest.raises(Stop):
                await answer.pass_to(take)
            assert await answer.read() == b""
        assert client.connections == 1


async def test_node_that_is_silent_while_it_is_passed_on_is_given_up() -> None:
    """Ours: `idle_s`."""
    script = says(HEAD + chunk(b"one"), then_wait=True)
    async with serving(script) as url, upstream() as client, posted(client, url) as answer:
        assert await failure_of(answer.pass_to(lambda _: True)) is Failure.TIMEOUT


async def test_slow_reader_slows_the_node_down() -> None:
    """Ours: what is kept is bounded, and the kernel pushes back."""
    written = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % MUCH_BYTES)
        while written < MUCH_BYTES:
            writer.write(b"x" * (64 << 10))
            written += 64 << 10
            await writer.drain()

    async with (
        serving(script) as url,
        upstream(Timeouts(), limit_s=30) as client,
        posted(client, url) as answer,
    ):
        still, before = 0, -1
        while still < STILL_TURNS:
            still, before = (still + 1 if written == before else 0), written
            await asyncio.sleep(0)
        assert 0 < written < MUCH_BYTES // 2
        piece = await answer.read()
        assert len(piece) < 1 << 20

        assert len(piece) + len(await body_of(answer)) == MUCH_BYTES


async def ask(client: HttpUpstream, url: str, reached: asyncio.Event) -> None:
    await client.post(url, JSON, b"{}")


async def send(client: HttpUpstream, url: str, reached: asyncio.Event) -> None:
    await client.post(url, JSON, b"x" * MUCH_BYTES)


async def read(client: HttpUpstream, url: str, reached: asyncio.Event) -> None:
    async with posted(client, url) as answer:
        await answer.read()
        reached.set()
        await answer.read()


async def pass_on(client: HttpUpstream, url: str, reached: asyncio.Event) -> None:
    def take(data: bytes) -> bool:
        reached.set()
        return True

    async with posted(client, url) as answer:
        await answer.pass_to(take)


async def refuse(client: HttpUpstream, url: str, reached: asyncio.Event) -> None:
    def take(data: bytes) -> bool:
        reached.set()
        return False

    async with posted(client, url) as answer:
        await answer.pass_to(take)


Caller = Callable[[HttpUpstream, str, asyncio.Event], Awaitable[None]]


@pytest.mark.parametrize("call", [ask, send, read, pass_on, refuse])
async def test_cancelling_resets_the_connection(call: Caller) -> None:
    """Ours: wherever the caller waits, the node learns at once that it has gone."""
    reached, closed = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if call in (ask, send):
            reached.set()
        else:
            writer.write(HEAD + chunk(b"one"))
        await until_closed(reader)
        closed.set()

    async def run(client: HttpUpstream, url: str) -> None:
        await call(client, url, reached)

    async with serving(script) as url, upstream(Timeouts(), limit_s=20) as client:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(run(client, url))
            await reached.wait()
            task.cancel()
        await closed.wait()
        while client.connections:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
