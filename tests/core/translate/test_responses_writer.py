"""Any answer becomes a response that OpenAI's SDK takes, as a stream and as a whole."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from openai.types.responses import Response as SdkResponse, ResponseStreamEvent
from pydantic import TypeAdapter

from cortex_core.codec import encode_json
from cortex_core.errors import EngineError, RequestError
from cortex_core.translate.parts import (
    Begin,
    Close,
    Delta,
    End,
    Fail,
    Finish,
    Open,
    PartEvent,
    PartKind,
    Usage,
)
from cortex_core.translate.responses_writer import ResponsesWriter, begun_response
from cortex_core.translate.sealed import unseal
from cortex_core.wire.openai.chat import TokenLogprob
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER
from tests.core.translate.part_sequences import part_sequences, told
from tests.core.translate.well_formed_responses import check_responses, events_of, text_of

_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

NOW = 1700000009.5

TOOLS = [
    {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "patch"},
    {
        "type": "namespace",
        "name": "agents",
        "description": "Agents.",
        "tools": [{"type": "function", "name": "close"}, {"type": "custom", "name": "tell"}],
    },
]


def writer(**fields: object) -> ResponsesWriter:
    body = encode_json({"model": "m", "input": "hi", "tools": TOOLS, **fields})
    request = RESPONSES_REQUEST_DECODER.decode(body)
    response = begun_response(
        request, response_id="resp_1", created_at=1700000000.0, is_stored=False
    )
    return ResponsesWriter(request, response, lambda: NOW)


def call(name: str, arguments: str, index: int = 0) -> list[PartEvent]:
    head = Open(index=index, kind=PartKind.TOOL_CALL, call_id=f"call_{index}", name=name)
    return [head, *([Delta(text=arguments)] if arguments else []), Close()]


def part(kind: PartKind, text: str, index: int = 0) -> list[PartEvent]:
    return [Open(index=index, kind=kind), Delta(text=text), Close()]


def answer(*parts: list[PartEvent], finish: Finish = Finish.STOP) -> list[PartEvent]:
    usage = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=5, reasoning_tokens=2)
    inner = [event for one in parts for event in one]
    return [Begin(), *inner, End(finish=finish, usage=usage)]


def whole(events: Sequence[PartEvent], **fields: object) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(writer(**fields).whole(events))
    return body


settings = st.fixed_dictionaries(
    {},
    optional={
        "reasoning": st.sampled_from([{"summary": "auto"}, {"effort": "low"}]),
        "include": st.just(["reasoning.encrypted_content"]),
        "parallel_tool_calls": st.booleans(),
        "max_tool_calls": st.integers(1, 3),
    },
)


@given(part_sequences(), settings)
def test_any_answer_is_a_well_formed_stream(
    events: list[PartEvent], fields: dict[str, object]
) -> None:
    """Protocol 8.3, and OpenAI's own types: every event of every stream."""
    stream = check_responses(writer(**fields).write(events))

    for event in stream.events:
        if event["type"] == "response.failed":
            # Codex goes by codes that OpenAI's list of them does not have.
            event["response"]["error"]["code"] = "server_error"
        _EVENTS.validate_python(event)


@given(part_sequences(may_fail=False))
def test_everything_that_was_generated_is_in_the_response(events: list[PartEvent]) -> None:
    """Ours: nothing is lost, and thoughts and text do not mix."""
    stream = check_responses(writer().write(events))

    parts = told(events)
    assert len(stream.items) == len(parts)
    for item, said in zip(stream.items, parts, strict=True):
        is_call = said.kind is PartKind.TOOL_CALL
        assert (item["type"] == "reasoning") == (said.kind is PartKind.REASONING)
        assert (item["type"] == "function_call") == is_call
        assert text_of(item) == (said.text or ("{}" if is_call else ""))
        assert item.get("call_id", "") == said.call_id


@given(part_sequences(), settings)
def test_writing_in_pieces_and_at_once_is_the_same(
    events: list[PartEvent], fields: dict[str, object]
) -> None:
    """Ours: the stream does not depend on how its events come."""
    piecewise = writer(**fields)

    pieces = b"".join(piecewise.write([event]) for event in events)

    assert pieces == writer(**fields).write(events)


@given(part_sequences(may_fail=False), settings)
def test_a_whole_answer_is_the_last_object_of_the_stream(
    events: list[PartEvent], fields: dict[str, object]
) -> None:
    """Ours: both ways of asking give the same response."""
    stream = check_responses(writer(**fields).write(events))

    body = whole(events, **fields)

    assert body == stream.response
    SdkResponse.model_validate(body)


@given(part_sequences(), st.integers(0, 20))
def test_a_stream_that_breaks_fails_wherever_it_is(events: list[PartEvent], place: int) -> None:
    """Protocol 8.3: `response.failed`, once; also before anything was written."""
    broken = writer()
    kept = [event for event in events[:place] if not isinstance(event, End | Fail)]
    data = broken.write(kept) + broken.fail(EngineError("it broke"))

    stream = check_responses(data)

    assert stream.response["error"] == {"code": "engine_error", "message": "it broke"}
    assert broken.fail(EngineError("again")) == b""
    assert broken.write([Begin(), Open(index=0, kind=PartKind.TEXT)]) == b""


def test_nothing_follows_the_end() -> None:
    """Ours: a failure that comes late changes nothing."""
    done = writer()
    done.write(answer(part(PartKind.TEXT, "hello")))

    assert done.fail(EngineError("late")) == b""
    assert done.response.status == "completed"
    assert done.response.completed_at == NOW


def test_a_whole_answer_that_fails_raises() -> None:
    """Ours: the caller of `whole` gives an error answer, and what is kept says so."""
    broken = writer()

    with pytest.raises(RequestError, match="it broke"):
        broken.whole([Begin(), Fail(error=EngineError("it broke"))])

    assert broken.response.status == "failed"


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        (Finish.STOP, "completed", None),
        (Finish.TOOL_CALLS, "completed", None),
        (Finish.LENGTH, "incomplete", "max_output_tokens"),
        (Finish.WINDOW, "incomplete", "max_output_tokens"),
        (Finish.CONTENT_FILTER, "incomplete", "content_filter"),
    ],
)
def test_the_end_tells_why(finish: Finish, status: str, reason: str | None) -> None:
    """Protocol 8.2, ends; the item that a limit cut is incomplete as well."""
    body = whole(answer(part(PartKind.TEXT, "so"), finish=finish))

    assert body["status"] == status
    assert (body["incomplete_details"] or {}).get("reason") == reason
    assert body["output"][0]["status"] == status


def test_usage_has_every_count_of_the_sdk() -> None:
    """Protocol 8.2, usage."""
    body = whole(answer(part(PartKind.TEXT, "so")))

    assert body["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }


def test_a_function_of_a_namespace_gets_its_name_back() -> None:
    """Protocol 10.3: Codex knows neither the flat name nor a dotted one."""
    (item,) = whole(answer(call("agents__close", "{}")))["output"]

    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "agents", "close")
    assert item["call_id"] == "call_0"


def test_a_function_without_a_namespace_has_no_such_key() -> None:
    """Protocol 8.2, items."""
    (item,) = whole(answer(call("look", '{"a":1}')))["output"]

    assert "namespace" not in item
    assert (item["name"], item["arguments"]) == ("look", '{"a":1}')


@pytest.mark.parametrize(
    ("arguments", "given"),
    [('{"input":"*** Begin\\n"}', "*** Begin\n"), ('{"inp', '{"inp'), ("[1]", "[1]"), ("", "")],
)
def test_a_custom_tool_gets_its_text(arguments: str, given: str) -> None:
    """Ours: the text out of its one argument; what is cut off or something else stays as it is."""
    (item,) = whole(answer(call("patch", arguments)))["output"]

    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", given)
    assert item["id"].startswith("ctc_")


def test_a_custom_tool_of_a_namespace_gets_its_name_back() -> None:
    """OpenAI API reference: custom tools may be in namespaces, like functions."""
    (item,) = whole(answer(call("agents__tell", '{"input":"go"}')))["output"]

    assert item["type"] == "custom_tool_call"
    assert (item["namespace"], item["name"], item["input"]) == ("agents", "tell", "go")


@pytest.mark.parametrize("fields", [{"parallel_tool_calls": False}, {"max_tool_calls": 1}])
def test_calls_beyond_what_was_asked_are_left_out(fields: dict[str, object]) -> None:
    """Ours: an engine that gives more is cut to what the caller allows."""
    events = answer(call("look", "{}"), call("look", "{}", 1), part(PartKind.TEXT, "done", 2))

    kinds = [item["type"] for item in whole(events, **fields)["output"]]

    assert kinds == ["function_call", "message"]


def test_thoughts_are_content_unless_a_summary_is_asked_for() -> None:
    """OpenAI API reference, reasoning items: `content` holds thoughts, `summary` what is shown."""
    events = answer(part(PartKind.REASONING, "hm"))

    (plain,) = whole(events)["output"]
    (shown,) = whole(events, reasoning={"summary": "auto"})["output"]

    assert (plain["content"], plain["summary"]) == ([{"type": "reasoning_text", "text": "hm"}], [])
    assert (shown["content"], shown["summary"]) == ([], [{"type": "summary_text", "text": "hm"}])
    assert plain["encrypted_content"] is None


def test_thoughts_are_sealed_when_asked_for() -> None:
    """Ours: what a client returns unread can be opened again."""
    events = answer(part(PartKind.REASONING, "hm"))

    (item,) = whole(events, include=["reasoning.encrypted_content"])["output"]

    assert unseal(item["encrypted_content"]) == "hm"


def test_a_refusal_is_a_part_of_its_own() -> None:
    """OpenAI API reference: `response.refusal.delta`, and a part of type `refusal`."""
    data = writer().write(answer(part(PartKind.REFUSAL, "no")))

    stream = check_responses(data)

    assert stream.items[0]["content"] == [{"type": "refusal", "refusal": "no"}]
    assert any(event["type"] == "response.refusal.delta" for event in stream.events)


def test_probabilities_are_told_with_their_text() -> None:
    """OpenAI API reference: `logprobs` of deltas, of the done event and of the part."""
    one = TokenLogprob(token="so", logprob=-0.5, bytes=(115, 111))
    delta = Delta(text="so", logprobs=(one,))
    data = writer().write(answer([Open(index=0, kind=PartKind.TEXT), delta, Close()]))

    stream = check_responses(data)

    told_of = [event["logprobs"] for event in stream.events if "output_text" in event["type"]]
    told_of.append(stream.items[0]["content"][0]["logprobs"])
    expected = {"token": "so", "logprob": -0.5, "bytes": [115, 111], "top_logprobs": []}
    assert told_of == [[expected]] * 3


def test_the_response_repeats_what_was_asked() -> None:
    """Protocol 8.2: settings come back, tools and format with their types."""
    fields: dict[str, object] = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "max_output_tokens": 7,
        "truncation": "auto",
        "prompt_cache_key": "k",
    }

    body = whole(answer(), **fields)

    assert {name: body[name] for name in fields} == fields
    assert body["text"]["format"] == {"type": "text"}
    assert [tool["type"] for tool in body["tools"]] == ["function", "custom", "namespace"]


def test_keep_alive_is_a_comment() -> None:
    """Protocol 1.7: comments alone."""
    assert events_of(writer().keep_alive()) == []
    assert writer().keep_alive().startswith(b": ")
