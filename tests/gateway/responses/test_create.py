"""Responses, whole and as streams: what the node hears, and what the caller gets."""

import contextlib
import logging
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError, RequestError
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER
from tests.core.translate.responses_asked import translate
from tests.fakes.upstream import answers, cuts
from tests.gateway.responses.asking import LOOK, call, calling, completion, pieces


async def test_a_response_is_made_from_a_chat_completion() -> None:
    """Issue: JSON, usage, output items."""
    async with calling([completion("hello", reasoning="hm")]) as caller:
        response = await caller.create(
            "hi", instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=9
        )

    assert caller.said() == [("system", "Be brief."), ("user", "hi")]
    assert caller.heard()["max_completion_tokens"] == 9
    kinds = [item["type"] for item in response["output"]]
    assert kinds == ["reasoning", "message"]
    assert response["output"][1]["content"][0]["text"] == "hello"
    assert response["status"] == "completed"
    assert response["metadata"] == {"a": "b"}
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (3, 2)


async def test_events_are_numbered_and_end_once() -> None:
    """Issue: `type` and a monotonic `sequence_number` in every event, the whole life cycle."""
    script = pieces({"reasoning": "hm"}, {"content": "hel"}, {"content": "lo"})
    async with calling([script]) as caller:
        events = await caller.stream()

    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert deltas == ["hel", "lo"]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]


async def test_bare_messages_are_items() -> None:
    """Issue: bare `{role, content}` items."""
    said = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "yes?"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "go on"}]},
    ]
    async with calling([completion()]) as caller:
        await caller.create(said)

    assert caller.said() == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "yes?"),
        ("user", "go on"),
    ]


async def test_hosted_tools_are_dropped_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """Issue: dropped with a log line (refusing breaks Codex), `namespace` flattened and split."""
    caplog.set_level(logging.INFO)
    spawn = {"type": "function", "name": "spawn", "parameters": {"type": "object"}}
    tools = [
        {"type": "web_search"},
        {"type": "namespace", "name": "agents", "tools": [spawn]},
        {"type": "custom", "name": "patch"},
    ]
    calls = [call("agents__spawn"), call("patch", '{"input":"*** Begin"}', "call_2")]
    async with calling([completion("", tool_calls=calls)]) as caller:
        response = await caller.create(tools=tools)

    names = [tool["function"]["name"] for tool in caller.heard()["tools"]]
    assert names == ["agents__spawn", "patch"]
    spawned, patched = [item for item in response["output"] if item["type"] != "message"]
    assert (spawned["type"], spawned["name"]) == ("function_call", "spawn")
    assert spawned["namespace"] == "agents"
    assert (patched["type"], patched["input"]) == ("custom_tool_call", "*** Begin")
    assert "tools.0" in [vars(record).get("ignored") for record in caplog.records]


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
async def test_an_answer_that_is_cut_is_incomplete(finish: str, status: str, reason: str) -> None:
    """Issue: incomplete."""
    async with calling([pieces({"content": "hel"}, finish=finish)]) as caller:
        events = await caller.stream(max_output_tokens=2)

    last = events[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"]["incomplete_details"]["reason"] == reason


async def test_a_stream_that_breaks_has_failed() -> None:
    """Issue: failed; told in the dialect, as the last event."""

    async def script(wire: Any) -> None:
        await wire.begin_stream()
        delta = {"index": 0, "delta": {"content": "hel"}, "finish_reason": None}
        await wire.event({"id": "c", "created": 1, "model": "m", "choices": [delta]})
        wire.cut()

    async with calling([script]) as caller:
        events = await caller.stream()

    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["message"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_a_refusal_of_the_engine_is_an_error_in_the_dialect() -> None:
    """Ours: a status, a message and a code, with a stream asked for or not."""
    error = {"error": {"message": "too long", "type": "x", "code": 400, "param": None}}
    async with calling([answers(400, encode_json(error))]) as caller:
        for is_stream in (False, True):
            status, told = await caller.refused(stream=is_stream)
            assert (status, told["message"]) == (400, "too long")


async def test_a_node_that_is_cut_off_is_an_error_and_no_response() -> None:
    """Ours: nothing is kept of what did not come to be."""
    async with calling([cuts]) as caller:
        status, told = await caller.refused()

    assert status == 502
    assert told["code"] == "upstream_cut"


@pytest.mark.parametrize(
    ("said", "fields", "param"),
    [
        ([], {}, "input"),
        ([{"type": "unheard_of"}], {}, "input.0.type"),
        ([{"role": "user", "content": "hi"}, {"role": "x", "content": ""}], {}, "input.1.role"),
        ([{"type": "function_call_output", "call_id": "c", "output": "x"}], {}, "input.0"),
        ("hi", {"truncation": "x"}, "truncation"),
        ("hi", {"max_output_tokens": 0}, "max_output_tokens"),
        ("hi", {"prompt": {"id": "p"}}, "prompt"),
        ("hi", {"text": {"format": {"type": "x"}}}, "text.format"),
        ("hi", {"background": True, "store": False}, "background"),
        ("hi", {"previous_response_id": "r", "conversation": "c"}, "conversation"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_field(
    said: Any, fields: dict[str, Any], param: str
) -> None:
    """Issue: bad input gets a clear error; the node is not asked."""
    async with calling([completion()]) as caller:
        status, told = await caller.refused(said, **fields)

    assert (status, told["param"]) == (400, param)
    assert caller.node.wires == []


async def test_tokens_are_counted_without_a_response() -> None:
    """Issue: `input_tokens` counting."""
    async with calling([answers(200, b'{"prompt_tokens":7}')]) as caller:
        body = {"model": "org/model", "input": "hi", "tools": [LOOK]}
        status, counted = await caller.ask("POST", "/v1/responses/input_tokens", body)

    assert (status, counted) == (200, {"object": "response.input_tokens", "input_tokens": 7})
    assert caller.node.wires[0].path == "/v1/chat/completions/count_tokens"


async def test_a_web_socket_is_answered_with_upgrade_required() -> None:
    """Issue: 426 on the WebSocket upgrade; Codex then goes on with plain HTTP."""
    async with calling([completion()]) as caller, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await session.ws_connect(caller.gateway.url + "/v1/responses")

    assert refusal.value.status == 426


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
kinds = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
        "compaction",
        "web_search_call",
        "item_reference",
        "x",
    ]
)
items = st.fixed_dictionaries(
    {},
    optional={
        "type": kinds,
        "role": st.sampled_from(["user", "assistant", "system", "developer", "x"]),
        "content": json_values,
        "call_id": st.sampled_from(["a", "b", ""]),
        "name": st.sampled_from(["look", "patch"]),
        "arguments": st.text(max_size=5),
        "output": json_values,
        "input": json_values,
        "summary": json_values,
        "encrypted_content": st.text(max_size=5),
    },
)
tools = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", "namespace", "web_search", "x"])},
    optional={"name": st.text(max_size=3), "parameters": json_values, "tools": json_values},
)
bodies = st.fixed_dictionaries(
    {"input": st.text(max_size=5) | st.lists(items, max_size=4) | json_values},
    optional={
        "instructions": json_values,
        "tools": st.lists(tools, max_size=3) | json_values,
        "tool_choice": json_values,
        "text": json_values,
        "reasoning": json_values,
        "include": json_values,
        "top_logprobs": json_values,
        "conversation": json_values,
        "metadata": json_values,
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(bodies)
def test_any_body_becomes_a_chat_request_or_is_refused(body: dict[str, Any]) -> None:
    """Issue: fuzzed bodies never give a 500."""
    try:
        done = translate(body)
    except RequestError:
        return
    open_calls: list[str] = []
    for place, message in enumerate(done.chat.messages):
        assert message.role != "system" or place == 0
        if message.role == "tool":
            assert open_calls.pop(0) == message.tool_call_id
            continue
        assert not open_calls
        open_calls = [made.id for made in message.tool_calls or ()]
    assert not open_calls


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(json_values)
def test_any_json_is_a_request_or_is_refused(value: Any) -> None:
    """Issue: as above, for what is no request at all."""
    with contextlib.suppress(InvalidRequestError):
        decode_request(encode_json(value), RESPONSES_REQUEST_DECODER)
