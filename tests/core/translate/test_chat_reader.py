"""Chat completion answers, of vLLM and of others, as parts."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import ContextLengthError, EngineError, UpstreamCutError
from cortex_core.harness import Limit
from cortex_core.translate.chat_reader import ChatReader
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
from tests.core.translate.part_sequences import (
    ChatStream,
    Told,
    chat_streams,
    check_legal,
    cuts,
    split,
    told,
)


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish, **more}
    return b"data: " + msgspec.json.encode({"id": "a-1", "choices": [choice]}) + b"\n\n"


def call(index: int | None = 0, call_id: str = "", name: str = "", text: str = "") -> bytes:
    return event({"tool_calls": [fragment(index, call_id, name, text)]})


def fragment(
    index: int | None = 0, call_id: str = "", name: str = "", text: str = ""
) -> dict[str, Any]:
    piece: dict[str, Any] = {"function": {"arguments": text}}
    if name:
        piece["function"]["name"] = name
    if index is not None:
        piece["index"] = index
    return {**piece, "id": call_id} if call_id else piece


DONE = b"data: [DONE]\n\n"


def read(*events: bytes, limit: Limit | None = None) -> list[PartEvent]:
    reader = ChatReader(limit=limit)
    got = [part for data in events for part in reader.feed(data)]
    return got + reader.end()


def ended(*events: bytes, limit: Limit | None = None) -> End:
    last = read(*events, DONE, limit=limit)[-1]
    assert isinstance(last, End)
    return last


def failed(*events: bytes) -> Fail:
    last = read(*events)[-1]
    assert isinstance(last, Fail)
    return last


@given(chat_streams(), cuts)
def test_any_stream_cut_anywhere_becomes_legal_parts_that_say_the_same(
    stream: ChatStream, places: set[int]
) -> None:
    """Ours: nothing is lost, doubled or put elsewhere."""
    got = read(*split(stream.data, places))

    check_legal(got)
    said = told(got)
    assert [(p.kind, p.name, p.text) for p in said] == [
        (p.kind, p.name, p.text) for p in stream.told
    ]
    for mine, theirs in zip(said, stream.told, strict=True):
        assert mine.call_id == theirs.call_id or not theirs.call_id
    end = got[-1]
    assert isinstance(end, End)
    assert (end.finish, end.stop_sequence) == (stream.finish, stream.stop_sequence)
    if stream.usage is None:
        assert (end.usage.completion_tokens or 0) >= stream.deltas
    else:
        assert end.usage == stream.usage


@given(chat_streams(), st.data())
def test_a_stream_without_its_end_fails(stream: ChatStream, data: st.DataObject) -> None:
    """Ours: a cut stream never looks complete."""
    end = stream.data.index(b"[DONE]")
    cut = data.draw(st.integers(0, end))

    got = read(stream.data[:cut])

    check_legal(got)
    assert isinstance(got[-1], Fail)
    assert isinstance(got[-1].error, UpstreamCutError)


@given(st.binary() | st.text().map(lambda text: f"data: {text}\n\n".encode()))
def test_garbage_is_a_failure_and_no_exception(data: bytes) -> None:
    """Ours."""
    whole = ChatReader().whole(data)
    got = read(data)

    assert len(whole) == 1
    assert isinstance(whole[0], Fail)
    check_legal(got)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=4))
def test_fields_of_other_types_are_a_failure_and_no_exception(value: object) -> None:
    """Ours: what an upstream calls by a known name may be anything."""
    for field in ("choices", "usage", "error", "id", "object"):
        body = msgspec.json.encode({field: value})
        check_legal(ChatReader().whole(body))
        check_legal(read(b"data: " + body + b"\n\n"))
    for field in ("content", "tool_calls", "reasoning", "function_call"):
        check_legal(read(event({field: value})))


def test_calls_one_after_another_are_passed_on_at_once() -> None:
    """Ours: only what may still be added to holds others back."""
    reader = ChatReader()
    reader.feed(call(0, "a", "f"))

    assert reader.feed(call(0, text='{"x"'))[1:] == [Delta(text='{"x"')]
    assert reader.feed(call(0, text=":1}")) == [Delta(text=":1}")]
    got = reader.feed(call(1, "b", "g", "{"))

    assert got == [
        Close(),
        Open(index=1, kind=PartKind.TOOL_CALL, call_id="b", name="g"),
        Delta(text="{"),
    ]


def test_later_calls_wait_for_fragments_of_an_earlier_one() -> None:
    """protocols.md 2.7: one part is open at a time, and calls stay in order."""
    reader = ChatReader()
    reader.feed(call(0, "a", "f", '{"x":'))

    assert reader.feed(call(1, "b", "g", '{"y":')) == []
    got = [*reader.feed(call(0, text="1}")), *reader.feed(call(1, text="2}"))]

    assert got == [
        Delta(text="1}"),
        Close(),
        Open(index=1, kind=PartKind.TOOL_CALL, call_id="b", name="g"),
        Delta(text='{"y":'),
        Delta(text="2}"),
    ]


def test_text_after_a_call_that_is_never_complete_comes_at_the_end() -> None:
    """Ours: nothing is lost when a model writes broken arguments."""
    got = read(call(0, "a", "f", "{oops"), event({"content": "hi"}), DONE)

    check_legal(got)
    assert [part.text for part in told(got)] == ["{oops", "hi"]


def test_more_of_a_call_that_was_passed_on_as_complete_is_a_failure() -> None:
    """Ours: it could only be put where it does not belong."""
    later = event({"content": "x"})

    assert failed(call(0, "a", "f", "{}"), later, call(0, text="{}")).error.code == "upstream_cut"
    assert ended(call(0, "a", "f", "{}"), later, call(0, text="\n")).finish is Finish.TOOL_CALLS


@pytest.mark.parametrize(
    "events",
    [
        [event({"tool_calls": [fragment(0, "a", "f", "{}"), fragment(0, "b", "f", "{}")]})],
        [call(0, "a", "f", "{}"), call(0, "b", "f", "{}")],
        [event({"tool_calls": [fragment(None, "a", "f", "{}"), fragment(None, "b", "f", "{}")]})],
        [
            call(None, "a", "f"),
            call(None, text="{}"),
            call(None, "b", "f", "{"),
            call(None, text="}"),
        ],
    ],
)
def test_calls_with_index_0_or_without_stay_apart(events: list[bytes]) -> None:
    """Ours: engines that send whole calls do not always count them."""
    got = read(*events, DONE)

    check_legal(got)
    assert told(got) == tuple(
        Told(kind=PartKind.TOOL_CALL, text="{}", name="f", call_id=call_id) for call_id in "ab"
    )


def test_calls_of_one_chunk_without_index_and_arguments_are_two() -> None:
    """Ours: two calls of one function must not become one with its name twice."""
    got = read(event({"tool_calls": [fragment(None, name="f"), fragment(None, name="f")]}), DONE)

    check_legal(got)
    assert [(part.name, part.text) for part in told(got)] == [("f", ""), ("f", "")]


def test_a_head_that_is_repeated_is_not_appended() -> None:
    """Ours: some engines send id and name with every fragment."""
    got = read(call(0, "a", "f"), call(0, "a", "f", "{"), call(0, "a", "f", "}"), DONE)

    assert told(got) == (Told(kind=PartKind.TOOL_CALL, text="{}", name="f", call_id="a"),)


def test_ids_that_are_missing_or_doubled_are_made_and_unique() -> None:
    """Ours: clients pair results with calls by id alone."""
    events = [call(0, "x", "f", "{}"), call(1, "x", "f", "{}"), call(2, "", "f", "{}")]

    ids = [part.call_id for part in told(read(*events, DONE))]

    assert ids == ["x", "call_a-1_1", "call_a-1_2"]


def test_the_legacy_call_is_a_call() -> None:
    """OpenAI's reference: `function_call`, deprecated in favour of `tool_calls`."""
    events = [
        event({"function_call": {"name": "f", "arguments": ""}}),
        event({"function_call": {"arguments": "{}"}}, "function_call"),
    ]

    got = read(*events, DONE)

    assert [(part.name, part.text) for part in told(got)] == [("f", "{}")]
    assert isinstance(got[-1], End)
    assert got[-1].finish is Finish.TOOL_CALLS


def test_thoughts_under_both_names_come_once() -> None:
    """protocols.md 5.2: engines and gateways send either or both."""
    got = read(event({"reasoning": "hm", "reasoning_content": "hm", "content": "x"}), DONE)

    assert [(part.kind, part.text) for part in told(got)] == [
        (PartKind.REASONING, "hm"),
        (PartKind.TEXT, "x"),
    ]


def test_other_choices_are_not_mixed_in() -> None:
    """Ours: other dialects have one answer."""
    got = read(event({"content": "a"}), event({"content": "b"}).replace(b":0", b":1"), DONE)

    assert [part.text for part in told(got)] == ["a"]


def test_the_first_chunk_begins_the_answer_with_the_prompts_size() -> None:
    """vLLM's `continuous_usage_stats`: usage is in every chunk."""
    first = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":0}}\n\n'

    got = ChatReader().feed(first)

    assert got == [Begin(usage=Usage(prompt_tokens=7, completion_tokens=0))]


def test_probabilities_of_text_that_is_held_back_come_with_it() -> None:
    """vLLM holds text back that may begin a stop string, and sends probabilities without it."""
    one = {"content": [{"token": "a", "logprob": -1.0}]}
    two = {"content": [{"token": "b", "logprob": -2.0}]}

    got = read(event({"content": ""}, logprobs=one), event({"content": "ab"}, logprobs=two), DONE)

    (delta,) = (part for part in got if isinstance(part, Delta))
    assert [logprob.token for logprob in delta.logprobs] == ["a", "b"]


@pytest.mark.parametrize(
    ("reason", "stop", "finish", "sequence"),
    [
        ("stop", None, Finish.STOP, None),
        ("stop", 151645, Finish.STOP, None),
        ("stop", "END", Finish.STOP, "END"),
        ("length", None, Finish.LENGTH, None),
        ("length", "END", Finish.LENGTH, None),
        ("content_filter", None, Finish.CONTENT_FILTER, None),
        ("tool_calls", None, Finish.STOP, None),
        ("something_else", None, Finish.STOP, None),
    ],
)
def test_finish_reasons_of_an_answer_without_calls(
    reason: str, stop: object, finish: Finish, sequence: str | None
) -> None:
    """protocols.md 2.4; a reason that speaks of calls needs some."""
    end = ended(event({"content": "x"}, reason, stop_reason=stop))

    assert (end.finish, end.stop_sequence) == (finish, sequence)


@pytest.mark.parametrize(("completion", "finish"), [(5, Finish.WINDOW), (4, Finish.LENGTH)])
def test_a_full_context_is_told_from_the_callers_limit(completion: int, finish: Finish) -> None:
    """protocols.md 2.4: `model_context_window_exceeded`."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n'

    end = ended(event({"content": "x"}, "length"), usage % completion, limit=Limit(context=10))

    assert end.finish is finish


def test_usage_is_never_zero_when_something_came() -> None:
    """The issue's: an upstream that does not count is counted for, token by token at least."""
    zero = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":0}}\n\n'

    assert ended(event({"content": "a"}), event({"content": "b"})).usage.completion_tokens == 2
    assert ended(event({"content": "a"}), zero).usage == Usage(prompt_tokens=5, completion_tokens=1)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_request_that_the_engine_gave_up_failed(reason: str) -> None:
    """vLLM's finish reasons for requests that were aborted, and that broke."""
    assert isinstance(failed(event({"content": "x"}, reason), DONE).error, EngineError)


def test_an_error_event_fails_with_the_engines_words() -> None:
    """vLLM sends an error object, and `[DONE]` after it."""
    error = b'data: {"error":{"message":"boom","type":"InternalServerError","code":500}}\n\n'

    got = read(event({"content": "x"}), error, DONE)

    check_legal(got)
    assert isinstance(got[-1], Fail)
    assert (type(got[-1].error), got[-1].error.message) == (EngineError, "boom")


def test_an_error_of_an_old_engine_fails_too() -> None:
    """Ours: older versions of vLLM sent the members without an object around them."""
    error = failed(b'data: {"object":"error","message":"boom","code":500}\n\n').error

    assert (type(error), error.message) == (EngineError, "boom")


def test_a_context_that_is_too_long_is_told_as_such() -> None:
    """vLLM's sentence; clients start to compact when they hear of it."""
    message = "This model's maximum context length is 100 tokens. However, you requested 120 tokens"
    body = msgspec.json.encode({"error": {"message": message, "code": 400}})

    (fail,) = ChatReader().whole(body)

    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ContextLengthError)


def test_a_last_event_without_its_blank_line_counts() -> None:
    """Ours: some servers close the connection right after it."""
    assert isinstance(read(event({"content": "x"}), b"data: [DONE]")[-1], End)


def test_nothing_comes_after_the_end() -> None:
    """Ours: whatever a server appends is not part of the answer."""
    reader = ChatReader()
    reader.feed(event({"content": "x"}) + DONE + event({"content": "y"}))

    assert reader.feed(event({"content": "z"})) == []
    assert reader.end() == []


def test_a_whole_answer_has_its_parts_in_order() -> None:
    """OpenAI's reference, "The chat completion object", with vLLM's `reasoning`."""
    message = {
        "role": "assistant",
        "reasoning": "hm",
        "content": "hi",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
    }
    body = {
        "id": "1",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }

    got = ChatReader().whole(msgspec.json.encode(body))

    check_legal(got)
    assert told(got) == (
        Told(kind=PartKind.REASONING, text="hm"),
        Told(kind=PartKind.TEXT, text="hi"),
        Told(kind=PartKind.TOOL_CALL, text='{"x":1}', name="f", call_id="a"),
        Told(kind=PartKind.TOOL_CALL, text="", name="g", call_id="b"),
    )
    assert got[-1] == End(
        finish=Finish.TOOL_CALLS, usage=Usage(prompt_tokens=3, completion_tokens=4)
    )
