"""The Anthropic dialect over the data path: what callers get of scripted nodes."""

import base64
import json
from typing import Any

import pytest

from cortex_gateway.proxy.relay import SILENCE_S, Silence
from tests.fakes.gateway import MODEL, Answer, ask, gateway
from tests.fakes.upstream import (
    DONE,
    Script,
    ScriptedNode,
    Wire,
    answers,
    cuts,
    nodes,
    refuses,
    streams,
    words,
)

ASKED = {"max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


def asking(url: str, fields: dict[str, Any] | None = None, path: str = "") -> Any:
    """Ask for a message."""
    return ask(url, {**ASKED, **(fields or {})}, path="/v1/messages" + path)


def events_of(answer: Answer) -> list[tuple[str, dict[str, Any]]]:
    """Return name and data of every event of a stream."""
    events = []
    for block in answer.body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            events.append((lines["event"], json.loads(lines["data"])))
    return events


async def test_stream_is_translated_and_counted() -> None:
    """Issue: the life of a message, and all dialects are counted alike."""
    async with nodes(node := ScriptedNode(streams(words(3)))), gateway({"a": node.url}) as g:
        answer = await asking(g.url, {"stream": True})
        figures = await g.recorder.request()

    events = events_of(answer)
    sent = json.loads(node.wires[0].body)
    text = "".join(e["delta"].get("text", "") for name, e in events if "delta" in name)
    assert [name for name, _ in events][:3] == ["message_start", "ping", "content_block_start"]
    assert [name for name, _ in events][-2:] == ["message_delta", "message_stop"]
    assert text == "w0 w1 w2 "
    assert events[0][1]["message"]["model"] == MODEL
    assert node.wires[0].path == "/v1/chat/completions"
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (figures["outcome"], figures["completion_tokens"]) == ("ok", 3)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_node_that_is_cut_mid_stream_ends_in_an_error_event() -> None:
    """Protocol 0.3: a stream that just ends looks like success."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        for event in words(2)[:2]:
            await wire.event(event)
        wire.cut()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await asking(g.url, {"stream": True})
        figures = await g.recorder.request()

    events = events_of(answer)
    assert [name for name, _ in events][-1] == "error"
    assert "message_stop" not in [name for name, _ in events]
    assert events[-1][1]["error"]["type"] == "api_error"
    assert events[-1][1]["request_id"] == answer.headers["request-id"]
    assert figures["outcome"] == "upstream_cut"


async def test_error_event_of_the_engine_is_told_in_the_dialect() -> None:
    """Issue: `error` event when it breaks; the engine's own `[DONE]` after it counts for nothing."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.event({"error": {"message": "out of memory", "type": "server_error"}})
        await wire.chunk(DONE)
        await wire.end_stream()

    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await asking(g.url, {"stream": True})
        figures = await g.recorder.request()

    events = events_of(answer)
    assert [name for name, _ in events] == ["message_start", "ping", "error"]
    assert "out of memory" in events[-1][1]["error"]["message"]
    assert figures["outcome"] == "failed_at_node"


@pytest.mark.parametrize("first", [refuses, cuts])
async def test_another_node_is_asked_before_anything_was_sent(first: Script) -> None:
    """Contract: a failure before the first byte goes to another replica, translated or not."""
    async with (
        nodes(a := ScriptedNode(first), b := ScriptedNode(streams(words(2)))),
        gateway({"a": a.url, "b": b.url}) as g,
    ):
        answer = await asking(g.url, {"stream": True})

    assert answer.status == 200
    assert [name for name, _ in events_of(answer)][-1] == "message_stop"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_refusal_of_the_engine_keeps_its_meaning(is_stream: bool) -> None:
    """Protocol 1.4: wording that Claude Code matches."""
    body = json.dumps(
        {
            "error": {
                "message": "This model's maximum context length is 4096 tokens. However, your "
                "prompt contains 9010 input tokens. Please reduce the length.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        }
    ).encode()
    async with nodes(node := ScriptedNode(answers(400, body))), gateway({"a": node.url}) as g:
        answer = await asking(g.url, {"stream": is_stream})

    assert answer.status == 400
    assert answer.json["type"] == "error"
    assert answer.json["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 9010 tokens > 4096 maximum",
    }


async def test_overload_is_529_with_advice() -> None:
    """Contract: 529 `overloaded_error`, Retry-After."""
    body = b'{"error":{"message":"full","type":"server_error","param":null,"code":"x"}}'
    script = answers(503, body, retry_after="7")
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await asking(g.url)

    assert answer.status == 529
    assert answer.json["error"]["type"] == "overloaded_error"
    assert answer.headers["retry-after"] == "7"


async def test_count_asks_the_engine_and_says_only_the_number() -> None:
    """Issue: `/v1/messages/count_tokens`, without `max_tokens`."""
    script = answers(200, b'{"object":"chat.completion.token_count","prompt_tokens":17}')
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        asked = {"model": MODEL, "messages": ASKED["messages"], "tools": []}
        answer = await ask(g.url, asked, path="/v1/messages/count_tokens")

    assert answer.json == {"input_tokens": 17}
    assert node.wires[0].path == "/v1/chat/completions/count_tokens"


@pytest.mark.parametrize("script", [answers(200, b"{}"), streams(words(1))])
async def test_count_without_a_number_is_an_error(script: Script) -> None:
    """Ours: no number is made up."""
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await asking(g.url, path="/count_tokens")

    assert answer.status >= 500
    assert answer.json["type"] == "error"


async def test_what_means_nothing_is_named_in_a_header() -> None:
    """Issue: nothing is dropped silently."""
    tools = [
        {"name": "f", "input_schema": {"type": "object"}},
        {"type": "web_search_20250305", "name": "web_search"},
    ]
    async with nodes(node := ScriptedNode(streams(words(1)))), gateway({"a": node.url}) as g:
        asked = {"stream": True, "tools": tools, "context_management": {"edits": []}}
        answer = await asking(g.url, asked)

    assert answer.headers["x-cortex-ignored"] == "tools.1, context_management"


async def test_query_string_means_nothing() -> None:
    """Protocol 1.1: Claude Code sends `?beta=true`."""
    async with nodes(node := ScriptedNode(streams(words(1)))), gateway({"a": node.url}) as g:
        answer = await asking(g.url, {"stream": True}, path="?beta=true")

    assert answer.status == 200
    assert node.wires[0].path == "/v1/chat/completions"


def pdf(text: str) -> str:
    """Return a PDF with one page as base64; without text when `text` is empty."""
    shown = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        "/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(shown)}>>stream\n{shown}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{content}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    out += f"xref\n0 6\n0000000000 65535 f \n{table}trailer<</Size 6/Root 1 0 R>>\n"
    out += f"startxref\n{out.index('xref')}\n%%EOF\n"
    return base64.b64encode(out.encode()).decode()


def document(data: str) -> dict[str, Any]:
    """Return fields with a PDF."""
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    block = {"type": "document", "title": "The title", "source": source}
    return {"messages": [{"role": "user", "content": [block, {"type": "text", "text": "Well?"}]}]}


async def test_text_of_a_pdf_goes_into_the_prompt() -> None:
    """Issue: PDF to text when the extra `pdf` is there."""
    async with nodes(node := ScriptedNode(streams(words(1)))), gateway({"a": node.url}) as g:
        await asking(g.url, {"stream": True, **document(pdf("Grey geese fly south."))})

    (message,) = json.loads(node.wires[0].body)["messages"]
    assert message["content"] == "The title\n\nGrey geese fly south.\n\nWell?"


@pytest.mark.parametrize("data", [pdf(""), base64.b64encode(b"no pdf").decode(), "%%%"])
async def test_pdf_without_text_is_refused(data: str) -> None:
    """Issue: else a clear 400."""
    async with nodes(node := ScriptedNode(streams(words(1)))), gateway({"a": node.url}) as g:
        answer = await asking(g.url, document(data))

    assert answer.status == 400
    assert "PDF" in answer.json["error"]["message"]
    assert not node.wires


def test_silence_is_told_once_an_interval() -> None:
    """Ours: hidden thinking sends nothing, and clients show a stall."""
    now = 100.0

    class Clocked:
        def now(self) -> float:
            return now

    silence = Silence(Clocked().now)
    heard = [silence.is_long()]
    now += SILENCE_S + 1
    heard += [silence.is_long(), silence.is_long()]
    silence.end()
    heard.append(silence.is_long())

    assert heard == [False, True, False, False]
