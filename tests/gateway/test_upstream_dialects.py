"""Services that are no neurons: each caller hears from them in its own dialect."""

import json

import pytest

from cortex_gateway.clients.accesses import ANTHROPIC_VERSION
from tests.fakes.gateway import ask, gateway
from tests.fakes.upstream import DONE, Script, ScriptedNode, answers, nodes, streams, words
from tests.gateway.hosted import (
    CHAT,
    ENVIRON,
    HISTORY,
    KEY,
    MESSAGE,
    MESSAGES,
    THEIRS,
    TOOL,
    as_bytes,
    call,
    chunks,
    hosted,
    message_events,
    messages,
    refuses_with,
    text,
)


async def test_a_chat_caller_gets_an_anthropic_upstreams_answer() -> None:
    """Ours: translated both ways, the model named as the upstream knows it, the answer counted."""
    node = ScriptedNode(answers(200, json.dumps(MESSAGE).encode()))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        body = {**CHAT, "seed": 7, "max_tokens": 9}
        answer = await ask(g.url, body, headers={"authorization": f"Bearer {THEIRS}"})
        figures = await g.recorder.request()

    (choice,) = answer.json["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello", "stop")
    assert choice["message"]["reasoning_content"] == "hm"
    assert answer.json["model"] == "big"
    assert answer.json["usage"]["prompt_tokens"] == 10
    assert answer.headers["x-cortex-node"] == "hosted"
    assert answer.headers["x-cortex-model"] == "big"
    assert answer.headers["x-cortex-ignored"] == "seed"
    (wire,) = node.wires
    assert wire.path == "/v1/messages"
    sent = json.loads(wire.body)
    assert (sent["model"], sent["max_tokens"]) == ("their-big", 9)
    assert wire.headers["x-api-key"] == KEY
    assert wire.headers["anthropic-version"] == ANTHROPIC_VERSION
    assert "authorization" not in wire.headers
    assert (figures["outcome"], figures["node"], figures["model"]) == ("ok", "hosted", "big")
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (10, 2)
    assert figures["cached_prompt_tokens"] == 6


async def test_a_chat_caller_gets_an_anthropic_upstreams_stream() -> None:
    """Ours: pieces as they come, one finish, usage when it was asked for, and the terminator."""
    events = message_events(text("Hel", "lo"))
    node = ScriptedNode(messages(events))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        answer = await ask(g.url, body)
        figures = await g.recorder.request()

    got = chunks(answer.body)
    deltas = [choice["delta"] for chunk in got for choice in chunk["choices"]]
    pieces = [delta["content"] for delta in deltas if delta.get("content")]
    assert pieces == ["Hel", "lo"]
    finishes = [c["finish_reason"] for chunk in got for c in chunk["choices"]]
    assert [finish for finish in finishes if finish] == ["stop"]
    assert got[-1]["usage"]["total_tokens"] == 19
    assert {chunk["model"] for chunk in got} == {"big"}
    assert json.loads(node.wires[0].body)["stream"] is True
    assert (figures["outcome"], figures["completion_tokens"]) == ("ok", 9)
    assert figures["ttft_s"] is not None


async def test_a_chat_caller_has_tools_called_by_an_anthropic_upstream() -> None:
    """Ours: calls come with the upstream's ids, and go back with them as results."""
    first = message_events(text("Let me look."), call("look", '{"at": ', '"it"}'))
    node = ScriptedNode(messages(first), answers(200, json.dumps(MESSAGE).encode()))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        answer = await ask(g.url, {**CHAT, "stream": True, "tools": [TOOL]})
        got = chunks(answer.body)
        parts = [
            part
            for chunk in got
            for choice in chunk["choices"]
            for part in choice["delta"].get("tool_calls") or ()
        ]
        arguments = "".join(part["function"].get("arguments") or "" for part in parts)
        made = {"name": parts[0]["function"]["name"], "arguments": arguments}
        history = [
            *HISTORY,
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [{"id": parts[0]["id"], "type": "function", "function": made}],
            },
            {"role": "tool", "tool_call_id": parts[0]["id"], "content": "a cat"},
        ]
        again = await ask(g.url, {**CHAT, "messages": history, "tools": [TOOL]})

    assert (parts[0]["id"], made) == ("toolu_look", {"name": "look", "arguments": '{"at": "it"}'})
    assert [c["finish_reason"] for c in got[-1]["choices"]] == ["tool_calls"]
    assert again.status == 200
    asked, results = (json.loads(wire.body) for wire in node.wires)
    assert asked["tools"][0]["input_schema"] == TOOL["function"]["parameters"]
    called, result = results["messages"][1]["content"][-1], results["messages"][2]["content"][0]
    assert (called["type"], called["input"]) == ("tool_use", {"at": "it"})
    assert (result["type"], result["tool_use_id"]) == ("tool_result", "toolu_look")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_messages_caller_speaks_to_an_anthropic_upstream_itself(is_stream: bool) -> None:
    """Ours: bytes go through both ways but for the model's name; the dialect's headers as well."""
    events = message_events(text("Hel", "lo"))
    whole = json.dumps(MESSAGE, indent=1).encode()
    node = ScriptedNode(messages(events) if is_stream else answers(200, whole))
    body = json.dumps({**MESSAGES, "x-unknown": [1.0], "stream": is_stream}, indent=3).encode()
    headers = {
        "x-api-key": THEIRS,
        "anthropic-version": "2026-10-21",
        "anthropic-beta": "a-2026,b-2026",
        "cookie": "c=1",
    }
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        answer = await ask(g.url, body, path="/v1/messages?beta=true", headers=headers)
        figures = await g.recorder.request()

    assert answer.body == (as_bytes(events) if is_stream else whole)
    (wire,) = node.wires
    assert wire.body == body.replace(b'"big"', b'"their-big"')
    assert wire.headers["x-api-key"] == KEY
    assert wire.headers["anthropic-version"] == "2026-10-21"
    assert wire.headers["anthropic-beta"] == "a-2026,b-2026"
    assert "cookie" not in wire.headers
    assert THEIRS not in str(wire.headers)
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (10, 9 if is_stream else 2)
    assert figures["cached_prompt_tokens"] == 6


async def test_counting_is_asked_of_an_anthropic_upstream() -> None:
    """Ours: without what its counting refuses."""
    node = ScriptedNode(answers(200, b'{"input_tokens": 12}'))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        answer = await ask(g.url, json.dumps(MESSAGES).encode(), path="/v1/messages/count_tokens")

    assert answer.json == {"input_tokens": 12}
    assert node.wires[0].path == "/v1/messages/count_tokens"
    assert json.loads(node.wires[0].body).keys() == {"model", "messages"}


@pytest.mark.parametrize(
    ("script", "status", "code", "retry_after"),
    [
        (
            refuses_with(529, "overloaded_error", "Overloaded", retry_after="7"),
            503,
            "server_is_overloaded",
            "7",
        ),
        (refuses_with(529, "overloaded_error", "Overloaded"), 503, "server_is_overloaded", "5"),
        (
            refuses_with(429, "rate_limit_error", "slow down", retry_after="3"),
            429,
            "rate_limit_exceeded",
            "3",
        ),
        (refuses_with(400, "invalid_request_error", "no such field"), 400, None, None),
        (
            refuses_with(400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"),
            400,
            "context_length_exceeded",
            None,
        ),
        (refuses_with(401, "authentication_error", "bad x-api-key"), 500, "engine_error", None),
        (refuses_with(500, "api_error", "broke"), 500, "engine_error", None),
    ],
)
async def test_an_anthropic_upstreams_refusals_are_told_to_a_chat_caller(
    script: Script, status: int, code: str | None, retry_after: str | None
) -> None:
    """Ours: one table, two faces. A key that is not the caller's is not the caller's fault."""
    node = ScriptedNode(script)
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        answer = await ask(g.url, CHAT)

    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["x-cortex-node"] == "hosted"


async def test_a_messages_caller_gets_an_anthropic_upstreams_refusal_as_it_is() -> None:
    """Ours: same dialect, same bytes."""
    node = ScriptedNode(refuses_with(529, "overloaded_error", "Overloaded", retry_after="7"))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        answer = await ask(g.url, json.dumps(MESSAGES).encode(), path="/v1/messages")

    assert answer.status == 529
    assert answer.json["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    assert answer.headers["retry-after"] == "7"


async def test_a_stream_that_breaks_upstream_ends_in_an_error_for_a_chat_caller() -> None:
    """Ours: told in the caller's dialect, and no terminator after it."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    node = ScriptedNode(messages([*message_events(text("Hel"))[:4], error]))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        answer = await ask(g.url, {**CHAT, "stream": True})
        figures = await g.recorder.request()

    last = json.loads(answer.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "server_is_overloaded"
    assert DONE not in answer.body
    assert figures["outcome"] == "failed_at_node"


async def test_an_openai_upstream_gets_its_key_and_its_own_name() -> None:
    """Ours: bytes go through but for the name; a bearer key, and none of the caller's."""
    node = ScriptedNode(streams(words(3)))
    async with nodes(node), gateway({}, upstreams=[hosted(node, "openai")], environ=ENVIRON) as g:
        body = {**CHAT, "stream": True, "x-unknown": 1}
        headers = {"authorization": f"Bearer {THEIRS}", "x-api-key": THEIRS}
        answer = await ask(g.url, body, headers=headers)
        figures = await g.recorder.request()

    assert len(chunks(answer.body)) == len(words(3))
    assert answer.headers["x-cortex-node"] == "hosted"
    (wire,) = node.wires
    assert wire.path == "/v1/chat/completions"
    assert json.loads(wire.body) == {**body, "model": "their-big"}
    assert wire.headers["authorization"] == f"Bearer {KEY}"
    assert THEIRS not in str(wire.headers)
    assert (figures["outcome"], figures["completion_tokens"]) == ("ok", 3)


async def test_a_messages_caller_reaches_an_openai_upstream() -> None:
    """Ours: every dialect reaches every model."""
    node = ScriptedNode(streams(words(2)))
    async with nodes(node), gateway({}, upstreams=[hosted(node, "openai")], environ=ENVIRON) as g:
        body = json.dumps({**MESSAGES, "stream": True}).encode()
        answer = await ask(g.url, body, path="/v1/messages", headers={"x-api-key": THEIRS})

    assert b"event: message_stop" in answer.body
    (wire,) = node.wires
    assert json.loads(wire.body)["model"] == "their-big"
    assert wire.headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in wire.headers
    assert "anthropic-version" not in wire.headers
