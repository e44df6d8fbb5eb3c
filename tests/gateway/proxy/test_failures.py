"""What becomes of a request whose node fails."""

import asyncio
import json

import openai
import pytest

from cortex_core.fleet.breaker import FAILURES_TO_EJECT
from cortex_core.fleet.reducers import with_miss
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.sse import SseDecoder
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import MODEL, TO_A, ask, gateway, replica
from tests.fakes.upstream import (
    DONE,
    Script,
    ScriptedNode,
    Wire,
    answers,
    cuts,
    hangs,
    nodes,
    streams,
    words,
)
from tests.gateway.fleet import until_true

OK = answers(200, b'{"choices":[]}')
DOWN = "http://127.0.0.1:1"
"""Nothing listens on it."""


def replica_at(node: str) -> ReplicaId:
    return ReplicaId(node=NodeName(node), model=MODEL)


def events_of(body: bytes) -> list[str]:
    return [event.data for event in SseDecoder().feed(body)]


async def head_then_cut(wire: Wire) -> None:
    await wire.begin_stream()
    wire.cut()


async def head_then_end(wire: Wire) -> None:
    await wire.begin_stream()
    await wire.end_stream()


async def heartbeat_then_cut(wire: Wire) -> None:
    await wire.begin_stream()
    await wire.chunk(b": keep-alive\n\n")
    wire.cut()


async def half_event_then_cut(wire: Wire) -> None:
    await wire.begin_stream()
    await wire.chunk(b'data: {"half":')
    wire.cut()


@pytest.mark.parametrize(
    "broken", [cuts, head_then_cut, head_then_end, heartbeat_then_cut, half_event_then_cut]
)
async def test_failure_before_the_first_event_is_tried_elsewhere(broken: Script) -> None:
    """Ours: until an event was sent nobody has to know which node began."""
    good = ScriptedNode(streams(words(2)))
    async with (
        nodes(bad := ScriptedNode(broken), good),
        gateway({"a": bad.url, "b": good.url}) as g,
    ):
        answer = await ask(g.url, {"stream": True})
        figures = await g.recorder.request()

    assert answer.status == 200
    assert answer.body.endswith(DONE)
    assert answer.headers["x-cortex-node"] == "b"
    assert (len(bad.wires), len(good.wires)) == (1, 1)
    assert figures["outcome"] == "ok"
    assert g.recorder.attempts == ["cut_before_answer", "ok"]
    assert g.store.state.breakers[replica_at("a")].failures == 1


async def test_node_that_cannot_be_reached_is_passed_by() -> None:
    """Ours: the request goes elsewhere, and the node is looked at again at once."""
    async with nodes(good := ScriptedNode(OK)), gateway({"a": DOWN, "b": good.url}) as g:
        answer = await ask(g.url, headers=TO_A)
        await g.refresh_asked("a")

    assert answer.status == 200
    assert g.recorder.attempts == ["connect", "ok"]


@pytest.mark.parametrize(
    ("script", "code"), [(None, "upstream_unreachable"), (cuts, "upstream_cut")]
)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_nowhere_else_to_go_is_told_as_it_is(
    script: Script | None, code: str, is_stream: bool
) -> None:
    """Contract: 502 with what happened, not with what the search found in the end."""
    async with (
        nodes(bad := ScriptedNode(script or cuts)),
        gateway({"a": bad.url if script else DOWN}) as g,
    ):
        answer = await ask(g.url, {"stream": is_stream})
        figures = await g.recorder.request()

    assert (answer.status, answer.json["error"]["code"]) == (502, code)
    assert answer.headers["x-cortex-node"] == "a"
    assert (figures["outcome"], figures["node"]) == (code, "a")


async def test_two_attempts_are_the_most() -> None:
    """Ours: a request that three nodes fail on is its own fault, or the fleet's."""
    bad = [ScriptedNode(cuts) for _ in range(3)]
    async with (
        nodes(*bad),
        gateway({name: node.url for name, node in zip("abc", bad, strict=True)}) as g,
    ):
        answer = await ask(g.url)

    assert answer.status == 502
    assert sum(len(node.wires) for node in bad) == 2


async def test_replica_that_keeps_failing_is_left_alone() -> None:
    """Ours: after some failures in a row nobody is sent there while another one serves."""
    async with (
        nodes(bad := ScriptedNode(cuts), good := ScriptedNode(OK)),
        gateway({"a": bad.url, "b": good.url}) as g,
    ):
        for _ in range(FAILURES_TO_EJECT + 3):
            assert (await ask(g.url, headers=TO_A)).status == 200

    assert len(bad.wires) == FAILURES_TO_EJECT


async def test_success_forgives_failures() -> None:
    """Ours: only failures in a row count."""
    async with nodes(node := ScriptedNode(cuts, OK)), gateway({"a": node.url}) as g:
        await ask(g.url)
        assert g.store.state.breakers
        await ask(g.url)

        assert not g.store.state.breakers


def dies_after(count: int, *, cleanly: bool) -> Script:
    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        for event in words(10)[:count]:
            await wire.event(event)
        if cleanly:
            await wire.end_stream()
        else:
            await wire.chunk(b'data: {"debris')
            wire.cut()

    return script


@pytest.mark.parametrize("cleanly", [True, False])
async def test_stream_that_breaks_off_ends_in_one_error_event(cleanly: bool) -> None:
    """Contract: mid-stream one error event, then the end; a cut never looks complete."""
    other = ScriptedNode(OK)
    async with (
        nodes(node := ScriptedNode(dies_after(4, cleanly=cleanly)), other),
        gateway({"a": node.url}) as g,
    ):
        answer = await ask(g.url, {"stream": True})
        figures = await g.recorder.request()

    events = events_of(answer.body)
    assert len(events) == 5
    assert json.loads(events[-1])["error"]["code"] == "upstream_cut"
    assert [json.loads(event) for event in events[:-1]] == words(10)[:4]
    assert b"[DONE]" not in answer.body
    assert figures["outcome"] == "upstream_cut"


async def test_official_client_raises_on_a_broken_stream() -> None:
    """OpenAI Python SDK: an error event is an `APIError`, not a short answer."""
    async with (
        nodes(node := ScriptedNode(dies_after(3, cleanly=False))),
        gateway({"a": node.url}) as g,
        openai.AsyncOpenAI(base_url=g.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_silence_within_a_stream_is_a_timeout() -> None:
    """Contract: silent too long is `timeout`, in a stream as an event."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.closed.wait()

    async with (
        nodes(node := ScriptedNode(script)),
        gateway({"a": node.url}, timeouts=Timeouts(idle_s=0.2)) as g,
    ):
        answer = await ask(g.url, {"stream": True})
        await asyncio.wait_for(node.wires[0].closed.wait(), 5)

    assert json.loads(events_of(answer.body)[-1])["error"]["code"] == "timeout"


async def test_error_event_of_the_node_is_the_only_one() -> None:
    """Ours: the caller is told once; what the node said is the better word."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.event({"error": {"message": "engine", "type": "server_error", "code": None}})
        await wire.end_stream()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": True})
        figures = await g.recorder.request()

    events = events_of(answer.body)
    assert len(events) == 2
    assert json.loads(events[1])["error"]["message"] == "engine"
    assert figures["outcome"] == "failed_at_node"


async def test_nothing_follows_the_terminator() -> None:
    """Ours: data after `[DONE]` is dropped, and its connection with it."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.chunk(DONE)
        await wire.event({"more": 1})
        await wire.end_stream()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answers_ = [await ask(g.url, {"stream": True}) for _ in range(2)]

    for answer in answers_:
        assert events_of(answer.body)[1:] == ["[DONE]"]


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_answer_is_a_bad_gateway(reply: bytes) -> None:
    """Ours: a malformed head is the node's fault, never a 400 of the caller's."""

    async def script(wire: Wire) -> None:
        await wire.send(reply)
        await wire.closed.wait()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url)

    assert answer.status == 502


async def garbage_stream(wire: Wire) -> None:
    await wire.begin_stream()
    await wire.chunk(b"\x00\xff not sse \r\r\n" * 10)
    await wire.end_stream()


async def test_garbage_in_a_stream_is_an_error_not_an_answer() -> None:
    """Ours: whatever comes, without a terminator it is not complete."""
    async with nodes(node := ScriptedNode(garbage_stream)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": True})

    if answer.status == 200:
        assert json.loads(events_of(answer.body)[-1])["error"]["code"] == "upstream_cut"
    else:
        assert answer.json["error"]["code"] == "upstream_cut"


@pytest.mark.parametrize("step", range(1, 40, 7))
async def test_events_survive_any_cut_of_the_bytes(step: int) -> None:
    """WHATWG HTML 9.2: an event is where its blank line is, not where a packet ends."""
    events = words(3)[:-1]
    whole = b"".join(f"data: {json.dumps(e)}\r\n\r\n".encode() for e in events) + DONE

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        for at in range(0, len(whole), step):
            await wire.chunk(whole[at : at + step])
            await asyncio.sleep(0)
        await wire.end_stream()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": True})

    assert events_of(answer.body) == [*(json.dumps(event) for event in events), "[DONE]"]


async def test_a_request_at_a_frozen_node_goes_elsewhere_when_the_node_counts_as_down() -> None:
    """Ours: long before the time for a first byte is over; prefill may take minutes, this not."""
    async with (
        nodes(frozen := ScriptedNode(hangs), sound := ScriptedNode(OK)),
        gateway({"a": frozen.url, "b": sound.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(ask(g.url, headers=TO_A))
        await until_true(lambda: bool(frozen.wires))
        for _ in range(3):
            g.store.update(lambda state: with_miss(state, NodeName("a"), "silent"))
        answer = await asked

    assert answer.status == 200
    assert answer.headers["x-cortex-node"] == "b"


async def test_a_model_name_outside_latin_1_does_not_break_the_answer() -> None:
    """Ours: what a node calls its models is not ours to choose, a header's characters are."""
    name = ModelId("org/\u673a")
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", model=name)]) as g,
    ):
        answer = await ask(g.url, {"model": name})

    assert answer.status == 200
    assert answer.headers["x-cortex-model"] == "org/%E6%9C%BA"
