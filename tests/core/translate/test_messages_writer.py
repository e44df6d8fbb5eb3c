"""Answers in the Messages dialect: streams that SDKs and agents accept, and whole messages."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message as SdkMessage, RawMessageStreamEvent
from hypothesis import given, strategies as st
from pydantic import TypeAdapter

from cortex_core.errors import ContextLengthError, EngineError, OverloadedError
from cortex_core.translate.messages_writer import (
    MessagesWriter,
    ThinkingDisplay,
)
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
from cortex_core.translate.sealed import unseal
from tests.core.translate.part_sequences import Told, part_sequences, told
from tests.core.translate.well_formed_messages import check_messages

displays = st.sampled_from(list(ThinkingDisplay))
SDK_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
CALL = Open(index=0, kind=PartKind.TOOL_CALL, call_id="call_1", name="f")
TEXT = Open(index=0, kind=PartKind.TEXT)
THOUGHT = Open(index=0, kind=PartKind.REASONING)
USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=5, reasoning_tokens=2)


def writer(thinking: ThinkingDisplay = ThinkingDisplay.SHOWN) -> MessagesWriter:
    return MessagesWriter(model="m", message_id="msg_1", request_id="req-1", thinking=thinking)


def sequence(*parts: PartEvent, finish: Finish = Finish.STOP) -> list[PartEvent]:
    return [Begin(), *parts, End(finish=finish, usage=USAGE)]


def whole(events: Sequence[PartEvent], writes: MessagesWriter | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode((writes or writer()).whole(events))
    return answer


@given(part_sequences(), displays)
def test_any_sequence_becomes_a_well_formed_stream_with_the_same_content(
    events: list[PartEvent], display: ThinkingDisplay
) -> None:
    """Anthropic's "Streaming messages"; text, thoughts and arguments survive to the letter."""
    stream = check_messages(writer(display).write(events))

    assert (stream.error is not None) == isinstance(events[-1], Fail)
    seen = [
        part
        for part in told(events)
        if part.kind is not PartKind.REASONING or display is not ThinkingDisplay.HIDDEN
    ]
    blocks = stream.blocks if seen else [block for block in stream.blocks if block.get("text")]
    for part, block in zip(seen, blocks, strict=False):
        assert text_of(block) == (
            "" if block["type"] == "thinking" and display is ThinkingDisplay.OMITTED else part.text
        )
        if part.kind is PartKind.REASONING:
            assert unseal(block["signature"]) == part.text
        if part.kind is PartKind.TOOL_CALL:
            assert (block["id"], block["name"]) == (part.call_id, part.name)
    assert len(blocks) >= len(seen)


def text_of(block: dict[str, Any]) -> str:
    names = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
    text: str = block[names[block["type"]]]
    return text


@given(part_sequences(), displays, st.data())
def test_events_one_by_one_give_the_same_bytes(
    events: list[PartEvent], display: ThinkingDisplay, data: st.DataObject
) -> None:
    """Ours: how the upstream's bytes were cut cannot be seen."""
    cut = data.draw(st.integers(0, len(events)))
    pieces = writer(display)

    got = pieces.write(events[:cut]) + pieces.write(events[cut:])

    assert got == writer(display).write(events)


@given(part_sequences(may_fail=False), displays)
def test_a_whole_message_is_what_the_stream_adds_up_to(
    events: list[PartEvent], display: ThinkingDisplay
) -> None:
    """Ours: a caller sees the same answer whichever way it asks."""
    stream = check_messages(writer(display).write(events))

    message = whole(events, writer(display))

    assert [added_up(block) for block in stream.blocks] == [
        {name: value for name, value in block.items() if name != "citations"}
        for block in message["content"]
    ]
    assert stream.stop is not None
    assert {name: message[name] for name in stream.stop["delta"]} == stream.stop["delta"]
    assert message["usage"] == stream.stop["usage"]
    SdkMessage.model_validate(message, strict=False)


def added_up(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "tool_use":
        given = msgspec.json.decode(block["partial_json"] or "{}")
        return {"type": "tool_use", "id": block["id"], "name": block["name"], "input": given}
    return {name: value for name, value in block.items() if name != "citations"}


@given(part_sequences(), displays)
def test_anthropics_sdk_adds_every_stream_up(
    events: list[PartEvent], display: ThinkingDisplay
) -> None:
    """The SDK's own types and its own accumulator take each event."""
    stream = check_messages(writer(display).write(events))
    snapshot = None
    buffers: dict[int, bytes] = {}

    for fields in stream.events:
        if fields["type"] in ("ping", "error"):
            continue
        event = SDK_EVENT.validate_python(fields)
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)

    if stream.stop is not None:
        assert snapshot is not None
        assert snapshot.stop_reason == stream.stop["delta"]["stop_reason"]
        assert len(snapshot.content) == len(stream.blocks)


def test_a_stream_is_byte_for_byte_what_clients_were_seen_to_take() -> None:
    """protocols.md 2.7, with every event that a thought, a text and a call take."""
    events = sequence(
        Open(index=0, kind=PartKind.REASONING),
        Delta(text="hm"),
        Close(signature="sig"),
        Open(index=1, kind=PartKind.TEXT),
        Delta(text='a "b"'),
        Close(),
        Open(index=2, kind=PartKind.TOOL_CALL, call_id="call_1", name="f"),
        Delta(text='{"x"'),
        Close(),
        finish=Finish.TOOL_CALLS,
    )

    lines = writer().write(events).decode().split("\n\n")

    assert lines[1:-3] == [
        'event: ping\ndata: {"type":"ping"}',
        block_start(0, '{"type":"thinking","thinking":"","signature":""}'),
        block_delta(0, '{"type":"thinking_delta","thinking":"hm"}'),
        block_delta(0, '{"type":"signature_delta","signature":"sig"}'),
        block_stop(0),
        block_start(1, '{"type":"text","text":"","citations":null}'),
        block_delta(1, '{"type":"text_delta","text":"a \\"b\\""}'),
        block_stop(1),
        block_start(2, '{"type":"tool_use","id":"call_1","name":"f","input":{}}'),
        block_delta(2, '{"type":"input_json_delta","partial_json":"{\\"x\\""}'),
        block_stop(2),
    ]
    assert lines[-2:] == ['event: message_stop\ndata: {"type":"message_stop"}', ""]


def block_start(index: int, block: str) -> str:
    data = f'{{"type":"content_block_start","index":{index},"content_block":{block}}}'
    return f"event: content_block_start\ndata: {data}"


def block_delta(index: int, delta: str) -> str:
    data = f'{{"type":"content_block_delta","index":{index},"delta":{delta}}}'
    return f"event: content_block_delta\ndata: {data}"


def block_stop(index: int) -> str:
    return f'event: content_block_stop\ndata: {{"type":"content_block_stop","index":{index}}}'


def test_usage_is_known_from_the_start_and_complete_at_the_end() -> None:
    """protocols.md 2.8: what came from a cache is no part of `input_tokens`."""
    begin = Begin(usage=Usage(prompt_tokens=9, cached_tokens=4))

    stream = check_messages(writer().write([begin, End(finish=Finish.STOP, usage=USAGE)]))

    started = stream.events[0]["message"]["usage"]
    assert (started["input_tokens"], started["cache_read_input_tokens"]) == (5, 4)
    assert stream.stop is not None
    assert stream.stop["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
        "service_tier": "standard",
    }


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (End(finish=Finish.STOP), "end_turn"),
        (End(finish=Finish.STOP, stop_sequence="X"), "stop_sequence"),
        (End(finish=Finish.LENGTH), "max_tokens"),
        (End(finish=Finish.WINDOW), "model_context_window_exceeded"),
        (End(finish=Finish.TOOL_CALLS), "tool_use"),
        (End(finish=Finish.CONTENT_FILTER), "refusal"),
    ],
)
def test_every_finish_has_its_stop_reason(end: End, reason: str) -> None:
    """protocols.md 2.4."""
    message = whole([Begin(), TEXT, Delta(text="x"), Close(), end])

    assert message["stop_reason"] == reason
    assert message["stop_sequence"] == end.stop_sequence
    assert (message["stop_details"] is not None) == (reason == "refusal")


def test_a_refusal_is_text_with_its_reason() -> None:
    """protocols.md 2.7: SDKs raise on block types that they do not know."""
    refusal = Open(index=0, kind=PartKind.REFUSAL)

    stream = check_messages(writer().write(sequence(refusal, Delta(text="no"), Close())))

    assert [(block["type"], block["text"]) for block in stream.blocks] == [("text", "no")]
    assert stream.stop is not None
    assert stream.stop["delta"]["stop_reason"] == "refusal"
    assert stream.stop["delta"]["stop_details"]["type"] == "refusal"


def test_thoughts_alone_are_followed_by_an_empty_text() -> None:
    """protocols.md 2.3: `get_final_text` raises without one."""
    thought: list[PartEvent] = [THOUGHT, Delta(text="hm"), Close()]

    stream = check_messages(writer().write(sequence(*thought)))

    assert [block["type"] for block in stream.blocks] == ["thinking", "text"]


@pytest.mark.parametrize("text", ['{"a": ', "[1]", '"x"', "nonsense", "[" * 5000])
def test_a_call_whose_arguments_are_no_object_has_an_empty_one(text: str) -> None:
    """protocols.md 2.3: `input` is always an object."""
    message = whole(sequence(CALL, Delta(text=text), Close(), finish=Finish.TOOL_CALLS))

    assert [block["input"] for block in message["content"]] == [{}]


def test_a_call_cut_by_the_limit_gives_way_to_other_content() -> None:
    """protocols.md 2.4: half of the arguments are worse than no call."""
    text: list[PartEvent] = [TEXT, Delta(text="x"), Close()]
    cut: list[PartEvent] = [CALL, Delta(text='{"a": '), Close()]
    thought: list[PartEvent] = [THOUGHT, Delta(text="hm"), Close()]

    beside = whole(sequence(*text, *cut, finish=Finish.LENGTH))
    alone = whole(sequence(*thought, *cut, finish=Finish.LENGTH))

    assert [block["type"] for block in beside["content"]] == ["text"]
    assert [block["type"] for block in alone["content"]] == ["thinking", "tool_use"]


def test_an_error_is_an_event_and_nothing_follows() -> None:
    """protocols.md 2.7: no `message_stop`, and a client must not take half a text for all."""
    writes = writer()
    writes.write([Begin(), TEXT, Delta(text="x")])

    got = writes.fail(OverloadedError("full"))

    assert got == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
        b'"message":"full"},"request_id":"req-1"}\n\n'
    )
    assert writes.fail(EngineError("again")) == b""
    assert writes.write([Close(), End(finish=Finish.STOP)]) == b""
    assert writes.keep_alive() == b""


def test_nothing_follows_the_end() -> None:
    """Ours: an upstream that breaks after its end has said everything."""
    writes = writer()
    writes.write(sequence())

    assert writes.fail(EngineError("late")) == b""


def test_an_error_of_a_whole_answer_is_raised() -> None:
    """Ours: whoever asked answers with its status."""
    with pytest.raises(ContextLengthError):
        writer().whole([Begin(), Fail(error=ContextLengthError("too long"))])


def test_what_keeps_alive_is_a_comment_until_the_message_begins() -> None:
    """protocols.md 1.7: a ping before `message_start` breaks accumulators."""
    writes = writer()

    before = writes.keep_alive()
    writes.write([Begin()])

    assert before.startswith(b": ")
    assert writes.keep_alive() == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_ids_of_calls_pass_as_they_are() -> None:
    """protocols.md 2.5: any non-empty string comes back with the tool's result."""
    call = Open(index=0, kind=PartKind.TOOL_CALL, call_id="chatcmpl-tool-ä b", name="f")

    message = whole(sequence(call, Close(), finish=Finish.TOOL_CALLS))

    assert [block["id"] for block in message["content"]] == ["chatcmpl-tool-ä b"]
    assert told([call, Close()]) == (
        Told(kind=PartKind.TOOL_CALL, text="", name="f", call_id="chatcmpl-tool-ä b"),
    )
