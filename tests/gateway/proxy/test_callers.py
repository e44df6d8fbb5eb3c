"""Callers that leave, dawdle or come in crowds, and a gateway that goes down."""

import asyncio
import json
import logging

import msgspec
import pytest

from cortex_core.sse import SseDecoder
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import ask, calling, gateway
from tests.fakes.upstream import DONE, ScriptedNode, Wire, answers, nodes, streams, words

OK = answers(200, b'{"choices":[]}')


def events_of(body: bytes) -> list[str]:
    return [event.data for event in SseDecoder().feed(body)]


@pytest.mark.parametrize("phase", ["before the head", "before the first event", "mid-stream"])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_caller_that_leaves_ends_the_work_at_the_node(phase: str, is_stream: bool) -> None:
    """Ours: nobody computes for a caller that hung up, whatever the phase."""
    written = asyncio.Event()

    async def script(wire: Wire) -> None:
        if phase != "before the head":
            if is_stream:
                await wire.begin_stream()
            else:
                await wire.head(content_type="application/json", content_length="1000000")
        if phase == "mid-stream":
            await (wire.event(words(1)[0]) if is_stream else wire.send(b"{" + b" " * 200_000))
        written.set()
        await wire.closed.wait()

    async with (
        nodes(node := ScriptedNode(script)),
        gateway({"a": node.url}) as g,
        # Plain answers to chats are read whole before they are passed on; these are not.
        calling(g.url, {"stream": is_stream}, path="/v1/completions") as caller,
    ):
        await asyncio.wait_for(written.wait(), 5)
        if phase == "mid-stream":
            await caller.read_until(b"\n\n" if is_stream else b"{")
        caller.leave()

        await asyncio.wait_for(node.wires[0].closed.wait(), 5)
        figures = await g.recorder.request()

    assert figures["outcome"] == "client_gone"
    assert not g.proxy.in_flight.replicas
    assert g.proxy.in_flight.requests == 0


async def test_slow_caller_makes_the_node_wait() -> None:
    """Ours: what a caller does not read stays at the node; the gateway holds a bounded part."""
    total = 64 << 20
    event = b"data: " + b"x" * 65_000 + b"\n\n"

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        while wire.sent_bytes < total:
            await wire.chunk(event)

    async with (
        nodes(node := ScriptedNode(script)),
        gateway({"a": node.url}) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        await caller.read_until(b"\n\n")
        before = -1
        wire = await node.request()
        while wire.sent_bytes != before:
            before = wire.sent_bytes
            await asyncio.sleep(0.2)

        # Kernel buffers of two sockets, and ours.
        assert wire.sent_bytes < 24 << 20
        assert g.proxy.in_flight.requests == 1
        caller.leave()
        await asyncio.wait_for(wire.closed.wait(), 5)


async def test_drain_ends_streams_with_an_error_event(caplog: pytest.LogCaptureFixture) -> None:
    """Contract: `draining`, in the stream when it has begun, as 503 when it has not."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.closed.wait()

    async def silent(wire: Wire) -> None:
        await wire.closed.wait()

    caplog.set_level(logging.INFO, "cortex_gateway.proxy.account")
    async with nodes(node := ScriptedNode(script, silent)), gateway({"a": node.url}) as g:
        async with asyncio.TaskGroup() as tasks:
            streaming = tasks.create_task(ask(g.url, {"stream": True}))
            await node.request(0)
            waiting = tasks.create_task(ask(g.url))
            await node.request(1)
            await g.drain.drain(0.1)
        stream, plain = streaming.result(), waiting.result()
        outcomes = {(await g.recorder.request(n))["outcome"] for n in range(2)}

    assert json.loads(events_of(stream.body)[-1])["error"]["code"] == "draining"
    assert (plain.status, plain.json["error"]["code"]) == (503, "draining")
    assert outcomes == {"draining"}
    lines = [vars(record) for record in caplog.records if "outcome" in vars(record)]
    assert {line["status"] for line in lines} == {200, 503}


async def test_bug_is_an_internal_error_with_nothing_in_it() -> None:
    """Contract: 500 with the request id; counters are back."""
    async with nodes(node := ScriptedNode(OK)), gateway({"a": node.url}) as g:
        g.store.update(lambda state: msgspec.structs.replace(state, breakers=None))
        answer = await ask(g.url)
        figures = await g.recorder.request()

    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert figures["outcome"] == "internal_error"
    assert g.proxy.in_flight.requests == 0


async def test_two_hundred_streams_at_once() -> None:
    """Ours: they all end well, and every counter is back at zero."""
    async with (
        nodes(a := ScriptedNode(streams(words(20))), b := ScriptedNode(streams(words(20)))),
        gateway({"a": a.url, "b": b.url}, timeouts=Timeouts(connect_s=30)) as g,
    ):
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(ask(g.url, {"stream": True}, limit_s=40)) for _ in range(200)
            ]
        await g.recorder.request(199)

    assert all(task.result().body.endswith(DONE) for task in asked)
    assert g.recorder.attempts == ["ok"] * 200
    assert g.recorder.open == []
    assert g.proxy.in_flight.requests == 0
    assert not g.proxy.in_flight.replicas
    # One of them is the favourite of their conversation, and is not left alone with it.
    assert a.wires
    assert b.wires
