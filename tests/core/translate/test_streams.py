"""Streams from one dialect into another, with nothing between but bytes."""

import tracemalloc
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import assume, given, strategies as st

from cortex_core.errors import EngineError, UpstreamCutError
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.chat_writer import ChatWriter
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.messages_writer import MessagesWriter, ThinkingDisplay
from cortex_core.translate.parts import PartKind, Translator
from tests.core.translate.part_sequences import ChatStream, chat_streams, cuts, split
from tests.core.translate.well_formed_chat import check_chat
from tests.core.translate.well_formed_messages import check_messages

displays = st.sampled_from(list(ThinkingDisplay))


def to_messages(thinking: ThinkingDisplay = ThinkingDisplay.SHOWN) -> Translator:
    return Translator(
        ChatReader(), MessagesWriter(model="m", message_id="msg_1", thinking=thinking)
    )


def to_chat() -> Translator:
    writer = ChatWriter(model="m", answer_id="chatcmpl-1", created=7, include_usage=True)
    return Translator(MessagesReader(), writer)


def run(translator: Translator, pieces: Iterable[bytes]) -> bytes:
    return b"".join([*map(translator.feed, pieces), translator.end()])


@given(chat_streams(), displays, cuts)
def test_any_chat_stream_becomes_a_well_formed_stream_of_messages(
    stream: ChatStream, thinking: ThinkingDisplay, places: set[int]
) -> None:
    """The issue's: for any legal sequence of chunks, and the same for any split of its bytes."""
    got = run(to_messages(thinking), split(stream.data, places))

    messages = check_messages(got)
    assert got == run(to_messages(thinking), [stream.data])
    assert messages.error is None
    texts = "".join(block.get("text", "") for block in messages.blocks)
    assert texts == "".join(
        part.text for part in stream.told if part.kind in (PartKind.TEXT, PartKind.REFUSAL)
    )
    assert [b["partial_json"] for b in messages.blocks if b["type"] == "tool_use"] == [
        part.text for part in stream.told if part.kind is PartKind.TOOL_CALL
    ]


@given(chat_streams(), cuts)
def test_there_and_back_again_is_a_well_formed_chat_stream(
    stream: ChatStream, places: set[int]
) -> None:
    """Ours: text, thoughts and calls come through both dialects to the letter."""
    messages = run(to_messages(), [stream.data])

    got = run(to_chat(), split(messages, places))

    seen = check_chat(got, include_usage=True)
    assert got == run(to_chat(), [messages])
    assert seen.reasoning == said(stream, PartKind.REASONING)
    assert [call["arguments"] for call in seen.calls] == [
        part.text or "{}" for part in stream.told if part.kind is PartKind.TOOL_CALL
    ]
    if stream.usage is not None:
        assert seen.usage is not None
        assert seen.usage["prompt_tokens"] == stream.usage.prompt_tokens
        assert seen.usage["completion_tokens"] == stream.usage.completion_tokens


def said(stream: ChatStream, kind: PartKind) -> str:
    return "".join(part.text for part in stream.told if part.kind is kind)


@given(chat_streams(), cuts, st.data())
def test_a_stream_that_is_cut_ends_in_one_error(
    stream: ChatStream, places: set[int], data: st.DataObject
) -> None:
    """protocols.md 0.3: clients take a stream that just stops for a complete one."""
    cut = data.draw(st.integers(0, stream.data.index(b"[DONE]")))
    translator = to_messages()

    got = run(translator, split(stream.data[:cut], places))

    assert check_messages(got).error is not None
    assert isinstance(translator.failure, UpstreamCutError)
    assert translator.fail(EngineError("again")) == b""


@given(chat_streams())
def test_every_byte_alone_gives_the_same_stream(stream: ChatStream) -> None:
    """Ours: the worst cut that a network can make."""
    pieces = [stream.data[place : place + 1] for place in range(len(stream.data))]

    assert run(to_messages(), pieces) == run(to_messages(), [stream.data])


@given(chat_streams(), st.lists(st.integers(0, 40), max_size=5))
def test_what_keeps_alive_fits_between_any_two_events(
    stream: ChatStream, positions: list[int]
) -> None:
    """protocols.md 1.7: pings and comments break no accumulator."""
    translator = to_messages()
    out: list[bytes] = []

    for position, chunk in enumerate(stream.chunks):
        if position in positions:
            out.append(translator.keep_alive())
        out.append(translator.feed(chunk))

    events = b"".join(out).replace(b'event: ping\ndata: {"type":"ping"}\n\n', b"")
    plain = run(to_messages(), [stream.data])
    assert without_comments(events) == plain.replace(b'event: ping\ndata: {"type":"ping"}\n\n', b"")


def without_comments(data: bytes) -> bytes:
    return b"".join(
        event + b"\n\n" for event in data.split(b"\n\n") if event and not event.startswith(b":")
    )


@pytest.mark.parametrize("make", [to_messages, to_chat])
@given(st.lists(st.binary() | st.sampled_from([b"data: ", b"\n\n", b"{}", b'{"choices":[]}'])))
def test_garbage_ends_in_an_error_and_no_exception(
    make: Callable[[], Translator], pieces: list[bytes]
) -> None:
    """Ours; a terminator alone ends an empty answer, which is none of this."""
    assume(not any(end in b"".join(pieces) for end in (b"[DONE]", b"message_stop")))
    translator = make()

    got = run(translator, pieces)

    assert b"error" in got
    assert translator.failure is not None


def test_deltas_pass_at_once() -> None:
    """The issue's: chunk by chunk, never buffering an answer."""
    translator = to_messages()
    sent = [
        {"choices": [{"index": 0, "delta": delta}]}
        for delta in (
            {"reasoning": "hm"},
            {"content": "a"},
            {"content": "b"},
            {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": "{"}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        )
    ]

    got = [translator.feed(b"data: %b\n\n" % msgspec.json.encode(chunk)) for chunk in sent]

    assert all(
        b"content_block_delta" in piece and wanted in piece
        for piece, wanted in zip(got, (b"hm", b'"a"', b'"b"', b'"{"', b'"}"'), strict=True)
    )


def test_memory_does_not_grow_with_text() -> None:
    """The issue's: a stream of any length passes through what a few chunks take."""
    translator = to_messages()
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 1000)
    translator.feed(chunk)

    tracemalloc.start()
    try:
        for _ in range(1000):
            assert translator.feed(chunk)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 100_000, "a megabyte has passed"
