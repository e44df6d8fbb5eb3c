"""What a caller gets of a node's answer."""

import asyncio
import gzip
import json

import aiohttp
import msgspec
import openai
import pytest

from cortex_core.ids import ModelId
from cortex_gateway.proxy import relay
from cortex_gateway.proxy.relay import LINGER_S
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import MODEL, ask, calling, gateway, request
from tests.fakes.upstream import DONE, ScriptedNode, Wire, answers, nodes, streams, words

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
    }
).encode()


async def test_plain_answer_comes_through_as_it_is() -> None:
    """Ours: bytes and status are the node's, the headers say who answered."""
    async with nodes(node := ScriptedNode(answers(200, ANSWER))), gateway({"a": node.url}) as g:
        body = json.dumps(request({"temperature": 0.0}), indent=3).encode()
        answer = await ask(g.url, body, headers={"x-request-id": "my-1", "x-cortex-evil": "1"})
        figures = await g.recorder.request()

    assert (answer.status, answer.body) == (200, ANSWER)
    assert answer.headers["x-cortex-node"] == "a"
    assert answer.headers["x-cortex-model"] == MODEL
    assert answer.headers["x-request-id"] == "my-1"
    assert answer.headers["content-length"] == str(len(ANSWER))
    assert "x-cortex-cold-start" not in answer.headers
    assert node.wires[0].body == body
    assert node.wires[0].path == "/v1/chat/completions"
    assert node.wires[0].headers["x-request-id"] == "my-1"
    assert "x-cortex-evil" not in node.wires[0].headers
    assert (figures["outcome"], figures["node"], figures["model"]) == ("ok", "a", MODEL)
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (3, 7)
    assert (g.recorder.open, g.recorder.attempts) == ([], ["ok"])


async def test_stream_comes_through_as_it_is() -> None:
    """Ours: the node's events, byte for byte, as an event stream that nothing collects.

    But for the last, which tells what nobody asked for.
    """
    events = words(5)
    async with nodes(node := ScriptedNode(streams(events))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": True})
        figures = await g.recorder.request()

    sent = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events[:-1])
    assert answer.body == sent + DONE
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-cortex-node"] == "a"
    assert figures["outcome"] == "ok"
    assert figures["completion_tokens"] == 5
    assert figures["ttft_s"] is not None


async def test_events_come_one_by_one() -> None:
    """Ours: an event is at the caller before the node sends the next."""
    seen = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        for event in words(1)[:-1]:
            await wire.event(event)
            await seen.wait()
            seen.clear()
        await wire.chunk(DONE)
        await wire.end_stream()

    async with (
        nodes(node := ScriptedNode(script)),
        gateway({"a": node.url}) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        for _ in words(1)[:-1]:
            await caller.read_until(b"}\n\n")
            seen.set()
        last = await caller.read_until(DONE)

    assert last.endswith(DONE)


async def test_connections_to_a_node_are_used_again() -> None:
    """Ours: a stream that was read to its end leaves its connection for the next."""
    async with nodes(node := ScriptedNode(streams(words(1)))), gateway({"a": node.url}) as g:
        for _ in range(5):
            await ask(g.url, {"stream": True})

    assert (len(node.wires), node.connections) == (5, 1)


async def test_official_client_streams_and_reads_usage() -> None:
    """OpenAI Python SDK: a stream with `include_usage`, and a plain answer."""
    scripts = (streams(words(3)), answers(200, ANSWER))
    async with nodes(node := ScriptedNode(*scripts)), gateway({"a": node.url}) as g:
        client = openai.AsyncOpenAI(base_url=g.url + "/v1", api_key="x", max_retries=0)
        async with client:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            plain = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}]
            )

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "w0 w1 w2 "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert plain.choices[0].message.content == "hello"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/score"])
async def test_every_path_goes_to_the_same_path_of_a_node(path: str) -> None:
    """Ours: neurons serve what vLLM serves, under its names."""
    async with nodes(node := ScriptedNode(answers(200, b"{}"))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, path=path)

    assert (answer.status, node.wires[0].path) == (200, path)


async def test_alias_is_the_models_own_name_at_the_node() -> None:
    """Ours: an engine knows no aliases; nothing else of the body changes."""
    body = b'{ "model":"small", "messages":[{"role":"user","content":"\\"model\\":\\"small\\""}]}'
    async with (
        nodes(node := ScriptedNode(answers(200, ANSWER))),
        gateway({"a": node.url}, aliases={"small": ModelId(MODEL)}) as g,
    ):
        answer = await ask(g.url, body)

    assert answer.status == 200
    assert node.wires[0].body == body.replace(b'"model":"small"', b'"model":"org/model"', 1)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"\xff{}", "invalid_json", None),
        (b'{"x":' + b"[" * 100_000, "invalid_json", None),
        (b"[]", None, None),
        (b'{"messages":[]}', None, "model"),
        (b'{"model":3}', None, "model"),
        (b'{"model":"org/model","stream":"yes"}', None, "stream"),
    ],
)
async def test_unusable_body_is_refused_by_name(
    body: bytes, code: str | None, param: str | None
) -> None:
    """Contract: 400 `invalid_request_error`, with the field where there is one."""
    async with nodes(node := ScriptedNode(answers(200, ANSWER))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, body)
        figures = await g.recorder.request()

    error = answer.json["error"]
    assert (answer.status, error["type"]) == (400, "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert node.wires == []
    assert figures["model"] == "unknown"


async def test_compressed_request_is_refused() -> None:
    """Ours: the body has to be read for its model, and no SDK compresses."""
    async with nodes(node := ScriptedNode(answers(200, ANSWER))), gateway({"a": node.url}) as g:
        body = gzip.compress(json.dumps(request()).encode())
        answer = await ask(g.url, body, headers={"content-encoding": "gzip"})

    assert answer.status == 400
    assert "compressed" in answer.json["error"]["message"]


async def test_unknown_model_is_not_found() -> None:
    """Contract: 404 `model_not_found`; the name is no label of a series."""
    async with nodes(node := ScriptedNode(answers(200, ANSWER))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"model": "nobody/knows"})
        figures = await g.recorder.request()

    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert (figures["model"], figures["outcome"]) == ("unknown", "model_not_found")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, "refused_by_node"),
        (429, "refused_by_node"),
        (500, "failed_at_node"),
        (503, "refused_by_node"),
    ],
)
async def test_error_of_a_node_comes_through_byte_for_byte(status: int, outcome: str) -> None:
    """Ours: the engine's words and its status are the caller's."""
    body = b'{ "error": {"message":"no","type":"x","param":null,"code":null} }'
    script = answers(status, body, retry_after="7")
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": True})
        figures = await g.recorder.request()

    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["retry-after"] == "7"
    assert figures["outcome"] == outcome


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (500, "text/html", b"<html>secret</html>"),
        (404, "text/html", b"<html>secret</html>"),
        (502, "application/json", b"{secret"),
        (307, "application/json", b"{}"),
    ],
)
async def test_what_is_no_error_object_is_replaced(status: int, kind: str, body: bytes) -> None:
    """Ours: a page of some program between, or a redirect, is no answer of ours."""
    script = answers(status, body, content_type=kind, location="/elsewhere")
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url)

    assert answer.status == 502
    assert answer.json["error"]["code"] == "upstream_unreachable"
    assert b"secret" not in answer.body
    assert len(node.wires) == 1


async def test_large_answer_streams_with_its_length() -> None:
    """Ours: an answer of any size passes without being collected."""
    body = b'{"data":"' + b"x" * 3_000_000 + b'"}'
    async with nodes(node := ScriptedNode(answers(200, body))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, path="/v1/embeddings")
        figures = await g.recorder.request()

    assert answer.body == body
    assert answer.headers["content-length"] == str(len(body))
    assert figures["outcome"] == "ok"


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/v1/chat/completions", 100, 502),
        ("/v1/chat/completions", 3_000_000, 502),
        ("/v1/completions", 100, 502),
        ("/v1/completions", 3_000_000, None),
    ],
)
async def test_cut_plain_answer_never_looks_complete(
    path: str, size: int, status: int | None
) -> None:
    """Ours: 502 while that is possible, a cut connection after it."""

    async def script(wire: Wire) -> None:
        await wire.head(content_type="application/json", content_length=str(size + 10))
        await wire.send(b'{"data":"' + b"x" * (size - 9))
        wire.cut()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        try:
            answer = await ask(g.url, path=path)
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError):
            got = None
        else:
            got = answer.status
        figures = await g.recorder.request()

    assert got == status
    assert figures["outcome"] == "upstream_cut"


async def test_answer_that_ends_with_its_connection_is_checked() -> None:
    """Ours: without a length a cut looks like the end, so the JSON has to be whole."""

    async def script(wire: Wire) -> None:
        await wire.head(content_type="application/json", connection="close")
        await wire.send(ANSWER[:-20])
        wire.closed.set()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url)

    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_cut")


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_compressed_answer_stays_compressed(kind: str) -> None:
    """Ours: what cannot be watched is passed on as it is."""
    body = gzip.compress(ANSWER)
    script = answers(200, body, content_encoding="gzip", content_type=kind)
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url)

    assert (answer.headers["content-encoding"], answer.body) == ("gzip", body)


async def test_silence_of_a_node_is_told_as_a_timeout() -> None:
    """Contract: a node that is silent for too long is 504 `timeout`, and not asked twice."""

    async def silent(wire: Wire) -> None:
        await wire.closed.wait()

    async with (
        nodes(a := ScriptedNode(silent), b := ScriptedNode(silent)),
        gateway({"a": a.url, "b": b.url}, timeouts=Timeouts(first_byte_s=0.2)) as g,
    ):
        answer = await ask(g.url)

    assert (answer.status, answer.json["error"]["code"]) == (504, "timeout")
    assert len(a.wires) + len(b.wires) == 1


async def test_other_methods_are_refused_by_name() -> None:
    """Contract: 405 `method_not_supported` with `Allow`."""
    async with (
        nodes(node := ScriptedNode(answers(200, ANSWER))),
        gateway({"a": node.url}) as g,
        aiohttp.ClientSession() as session,
        session.get(g.url + "/v1/chat/completions") as answer,
    ):
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (405, "method_not_supported")
    assert answer.headers["allow"] == "POST"


async def test_stream_that_its_node_does_not_end_is_over_for_the_caller() -> None:
    """Ours: the terminator is the end; the connection that lingers is dropped."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.chunk(DONE)
        await wire.closed.wait()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": True})
        await asyncio.wait_for(node.wires[0].closed.wait(), 5)
        figures = await g.recorder.request()

    assert answer.body.endswith(DONE)
    assert figures["outcome"] == "ok"
    assert figures["duration_s"] < LINGER_S


async def test_next_request_does_not_wait_for_the_end_of_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours: the caller has all of the stream, and its connection is free."""
    monkeypatch.setattr(relay, "LINGER_S", 60.0)
    held = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.chunk(DONE)
        await held.wait()

    async with (
        nodes(node := ScriptedNode(script, answers(200, ANSWER))),
        gateway({"a": node.url}) as g,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
    ):
        url = g.url + "/v1/chat/completions"
        for asked in ({"stream": True}, {}):
            body = msgspec.json.encode(request(asked))
            async with asyncio.timeout(10), session.post(url, data=body) as answer:
                assert answer.status == 200
                await answer.read()
        held.set()
