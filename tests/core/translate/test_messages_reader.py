"""Answers of upstreams that speak the Messages dialect, as parts."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import EngineError, OverloadedError, UpstreamCutError
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.messages_writer import MessagesWriter
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
    Told,
    check_legal,
    cuts,
    part_sequences,
    split,
    told,
)

START = {
    "type": "message_start",
    "message": {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 1},
    },
}
STOP = {"type": "message_stop"}


def start(index: int, kind: str, **more: object) -> dict[str, Any]:
    block = {"type": kind, **more}
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **more: object) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def end(reason: str, **usage: object) -> dict[str, Any]:
    change = {"stop_reason": reason, "stop_sequence": "X" if reason == "stop_sequence" else None}
    return {"type": "message_delta", "delta": change, "usage": usage}


def encode(*events: dict[str, Any]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )


def read(*data: bytes) -> list[PartEvent]:
    reader = MessagesReader()
    got = [part for piece in data for part in reader.feed(piece)]
    return got + reader.end()


def read_events(*events: dict[str, Any]) -> list[PartEvent]:
    got = read(encode(*events))
    check_legal(got)
    return got


def writer() -> MessagesWriter:
    return MessagesWriter(model="m", message_id="msg_1")


@given(part_sequences(may_refuse=False), cuts)
def test_what_is_written_is_read_as_it_was(events: list[PartEvent], places: set[int]) -> None:
    """Ours: other than a signature and an empty text, which this dialect needs."""
    data = writer().write(events)

    got = read(*split(data, places))

    check_legal(got)
    if isinstance(events[-1], Fail):
        assert isinstance(got[-1], Fail)
        assert got[-1].error.message == events[-1].error.message
        return
    assert without_padding(told(got)) == told(events)
    assert ended(got) == as_read(ended(events))


@given(part_sequences(may_refuse=False, may_fail=False))
def test_a_whole_message_is_read_as_it_was(events: list[PartEvent]) -> None:
    """Ours: arguments as a JSON object, the rest to the letter."""
    got = MessagesReader().whole(writer().whole(events))

    check_legal(got)
    assert [compared(part) for part in without_padding(told(got))] == [
        compared(part) for part in told(events)
    ]
    assert ended(got) == as_read(ended(events))


def without_padding(parts: tuple[Told, ...]) -> tuple[Told, ...]:
    """Return the parts without the empty text of an answer that has none."""
    empty = Told(kind=PartKind.TEXT, text="")
    return parts[:-1] if parts[-1:] == (empty,) else parts


def compared(part: Told) -> tuple[object, ...]:
    is_call = part.kind is PartKind.TOOL_CALL
    text = msgspec.json.decode(part.text or "{}") if is_call else part.text
    return part.kind, part.name, part.call_id, text


def ended(events: list[PartEvent]) -> End:
    assert isinstance(events[-1], End)
    return events[-1]


def as_read(end: End) -> End:
    """Return an end as this dialect can say it: what was not cached is 0."""
    usage = msgspec.structs.replace(end.usage, cached_tokens=end.usage.cached_tokens or 0)
    return msgspec.structs.replace(end, usage=usage)


@given(part_sequences(may_fail=False), st.data())
def test_a_stream_without_its_end_fails(events: list[PartEvent], data: st.DataObject) -> None:
    """Ours: a cut stream never looks complete."""
    stream = writer().write(events)
    cut = data.draw(st.integers(0, stream.rindex(b"message_stop")))

    got = read(stream[:cut])

    check_legal(got)
    assert isinstance(got[-1], Fail)
    assert isinstance(got[-1].error, UpstreamCutError)


@given(st.binary() | st.text().map(lambda text: f"data: {text}\n\n".encode()))
def test_garbage_is_a_failure_and_no_exception(data: bytes) -> None:
    """Ours."""
    (whole,) = MessagesReader().whole(data)

    assert isinstance(whole, Fail)
    check_legal(read(data))


_EVENTS = (
    START,
    STOP,
    {"type": "ping"},
    start(0, "text", text=""),
    start(1, "thinking", thinking="", signature=""),
    start(1, "tool_use", id="t", name="f", input={}),
    start(2, "tool_use"),
    start(2, "server_tool_use", id="s", name="web_search", input={"q": 1}),
    delta(0, "text_delta", text="x"),
    delta(1, "thinking_delta", thinking="hm"),
    delta(1, "input_json_delta", partial_json="{}"),
    delta(1, "signature_delta", signature="s"),
    stop(0),
    stop(1),
    end("tool_use"),
    end("end_turn", output_tokens=3),
    {"type": "error", "error": {"type": "api_error", "message": "boom"}},
    {"type": "error"},
    {"type": "something_else", "delta": {"type": "what"}},
)


@given(st.lists(st.sampled_from(_EVENTS), max_size=12))
def test_any_order_of_events_gives_legal_parts(events: list[dict[str, Any]]) -> None:
    """Ours: writers rely on it, whatever an upstream sends."""
    check_legal(read_events(*events))


@given(st.lists(st.sampled_from(_EVENTS), max_size=12))
def test_thoughts_never_become_text(events: list[dict[str, Any]]) -> None:
    """Ours: a delta of another kind than its block is not content."""
    for part in told(read_events(*events)):
        assert part.kind is not PartKind.TEXT or "hm" not in part.text
        assert part.kind is not PartKind.REASONING or part.text.replace("hm", "") == ""


def test_ids_of_calls_are_unique_even_where_an_upstream_repeats_one() -> None:
    """Ours: clients pair results with calls by id alone."""
    call = start(0, "tool_use", id="t", name="f", input={})

    got = read_events(START, call, stop(0), {**call, "index": 1}, stop(1), end("tool_use"), STOP)

    assert [part.call_id for part in told(got)] == ["t", "t_"]


def test_an_upstreams_own_signature_is_kept() -> None:
    """Anthropic's reference: thinking blocks go back unchanged, with their signature."""
    got = read_events(
        START,
        start(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="hm"),
        delta(0, "signature_delta", signature="EqQB"),
        stop(0),
        end("end_turn"),
        STOP,
    )

    assert Close(signature="EqQB") in got


def test_blocks_of_the_hosted_service_are_read_over() -> None:
    """protocols.md 10.4: what another dialect cannot carry."""
    got = read_events(
        START,
        start(0, "redacted_thinking", data="opaque"),
        stop(0),
        start(1, "server_tool_use", id="s", name="web_search", input={}),
        delta(1, "input_json_delta", partial_json='{"q":1}'),
        stop(1),
        start(2, "web_search_tool_result", tool_use_id="s", content=[]),
        stop(2),
        start(3, "text", text=""),
        delta(3, "text_delta", text="hi"),
        delta(3, "citations_delta", citation={"type": "char_location"}),
        stop(3),
        end("end_turn", output_tokens=3),
        STOP,
    )

    assert told(got) == (Told(kind=PartKind.TEXT, text="hi"),)


def test_arguments_that_come_at_once_are_not_lost() -> None:
    """Ours: some servers put the whole input where a stream begins with an empty one."""
    call = start(0, "tool_use", id="t", name="f", input={"a": 1})
    more = delta(0, "input_json_delta", partial_json='{"b":2}')

    alone = read_events(START, call, stop(0), end("tool_use"), STOP)
    replaced = read_events(START, call, more, stop(0), end("tool_use"), STOP)

    assert [part.text for part in told(alone)] == ['{"a":1}']
    assert [part.text for part in told(replaced)] == ['{"b":2}']


def test_more_of_a_block_that_is_not_open_is_a_failure() -> None:
    """Ours: it could only be put where it does not belong."""
    got = read_events(
        START, start(0, "text", text=""), stop(0), delta(0, "text_delta", text="x"), STOP
    )

    assert isinstance(got[-1], Fail)


def test_usage_is_the_sum_of_what_was_and_was_not_cached() -> None:
    """protocols.md 2.8; what a later report leaves out stays as it was."""
    begin = {**START, "message": {**START["message"], "usage": USAGE_IN_PARTS}}  # type: ignore[dict-item]  # a literal

    got = read_events(begin, end("end_turn", output_tokens=8), STOP)

    assert got[0] == Begin(usage=Usage(prompt_tokens=12, cached_tokens=4))
    assert ended(got).usage == Usage(prompt_tokens=12, cached_tokens=4, completion_tokens=8)


USAGE_IN_PARTS = {
    "input_tokens": 5,
    "cache_creation_input_tokens": 3,
    "cache_read_input_tokens": 4,
    "output_tokens": 1,
}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", Finish.STOP),
        ("stop_sequence", Finish.STOP),
        ("pause_turn", Finish.STOP),
        ("max_tokens", Finish.LENGTH),
        ("model_context_window_exceeded", Finish.WINDOW),
        ("refusal", Finish.CONTENT_FILTER),
        ("tool_use", Finish.STOP),
        ("of_the_future", Finish.STOP),
    ],
)
def test_stop_reasons_of_an_answer_without_calls(reason: str, finish: Finish) -> None:
    """protocols.md 10.2; a reason that speaks of calls needs some."""
    got = ended(read_events(START, end(reason, output_tokens=1), STOP))

    assert got.finish is finish
    assert got.stop_sequence == ("X" if reason == "stop_sequence" else None)


def test_a_call_is_why_an_answer_ended() -> None:
    """protocols.md 2.4: decide by the presence of calls."""
    call = start(0, "tool_use", id="t", name="f", input={})

    got = read_events(START, call, stop(0), end("end_turn"), STOP)

    assert got[1:3] == [
        Open(index=0, kind=PartKind.TOOL_CALL, call_id="t", name="f"),
        Close(),
    ]
    assert ended(got).finish is Finish.TOOL_CALLS


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", OverloadedError),
        ("api_error", EngineError),
        ("authentication_error", EngineError),
        ("of_the_future", EngineError),
    ],
)
def test_an_error_event_is_a_failure_of_its_type(kind: str, error: type[Exception]) -> None:
    """Anthropic's reference, "Errors"; a bad key of ours is no fault of the caller's."""
    told_error = {"type": "error", "error": {"type": kind, "message": "boom"}}

    streamed = read_events(START, told_error, STOP)[-1]
    (whole,) = MessagesReader().whole(msgspec.json.encode(told_error))

    assert isinstance(streamed, Fail)
    assert isinstance(whole, Fail)
    assert type(streamed.error) is type(whole.error) is error


def test_deltas_come_as_they_arrive() -> None:
    """Ours: nothing is held back."""
    reader = MessagesReader()
    reader.feed(encode(START, start(0, "text", text="")))

    assert reader.feed(encode(delta(0, "text_delta", text="a"))) == [Delta(text="a")]
    assert reader.feed(encode({"type": "ping"})) == []
