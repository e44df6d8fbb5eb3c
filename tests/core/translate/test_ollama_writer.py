"""Answers in Ollama's dialect: lines of JSON for any legal sequence of parts."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import EngineError
from cortex_core.translate.ollama_writer import OllamaWriter
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
from cortex_core.wire.ollama import OllamaRequest

USAGE = Usage(prompt_tokens=9, completion_tokens=5)


class Ticks:
    """Time that goes on by a second whenever somebody looks."""

    def __init__(self) -> None:
        self.seconds = 99.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def writer(*, is_chat: bool = True, think: bool | None = None) -> OllamaWriter:
    return OllamaWriter(
        request=OllamaRequest(model="m", think=think),
        is_chat=is_chat,
        now=Ticks(),
        waited_s=0.5,
        epoch_s=1_795_000_000.25,
    )


def lines(data: bytes) -> list[Any]:
    """Return the objects of a stream, each of which is a line."""
    assert data.endswith(b"\n")
    return [msgspec.json.decode(line) for line in data.splitlines()]


def part(index: int, kind: PartKind, *texts: str, name: str = "f") -> list[PartEvent]:
    is_call = kind is PartKind.TOOL_CALL
    opened = Open(
        index=index,
        kind=kind,
        call_id=f"call_{index}" if is_call else "",
        name=name if is_call else "",
    )
    return [opened, *(Delta(text=text) for text in texts), Close()]


ANSWER = [
    Begin(),
    *part(0, PartKind.REASONING, "let ", "me"),
    *part(1, PartKind.TEXT, "Hel", "lo"),
    *part(2, PartKind.TOOL_CALL, '{"a"', ":1}"),
    *part(3, PartKind.TOOL_CALL, name="g"),
    End(finish=Finish.TOOL_CALLS, usage=USAGE),
]


def test_a_stream_is_lines_of_which_the_last_is_done() -> None:
    """Ollama's documentation, "Generate a chat completion", with streaming."""
    answer = lines(writer().write(ANSWER))

    assert [line["message"] for line in answer] == [
        {"role": "assistant", "content": "", "thinking": "let "},
        {"role": "assistant", "content": "", "thinking": "me"},
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "function": {"name": "f", "arguments": {"a": 1}, "index": 0},
                    "id": "call_2",
                }
            ],
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"function": {"name": "g", "arguments": {}, "index": 1}, "id": "call_3"}
            ],
        },
        {"role": "assistant", "content": ""},
    ]
    assert [line["done"] for line in answer] == [False] * 6 + [True]
    assert {line["model"] for line in answer} == {"m"}
    assert answer[-1]["done_reason"] == "stop"
    assert (answer[-1]["prompt_eval_count"], answer[-1]["eval_count"]) == (9, 5)


def test_durations_are_nanoseconds_of_what_was_seen() -> None:
    """Ours: the load is the wait before the request was sent, the prompt up to a first token."""
    stream = writer()
    first, last = lines(
        stream.write([Begin(), *part(0, PartKind.TEXT, "a"), End(finish=Finish.STOP)])
    )

    # The clock was looked at when the writer was made, at the token, and once for each line.
    assert last["load_duration"] == 500_000_000
    assert last["prompt_eval_duration"] == 1_000_000_000
    assert last["eval_duration"] == 2_000_000_000
    assert last["total_duration"] == 3_500_000_000
    assert first["created_at"] == "2026-11-18T11:06:42.250000Z"


def test_a_whole_answer_is_one_object() -> None:
    """Ollama's documentation, "Generate a chat completion", without streaming."""
    answer = msgspec.json.decode(writer().whole(ANSWER))

    assert answer["done"] is True
    assert answer["message"]["content"] == "Hello"
    assert answer["message"]["thinking"] == "let me"
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["f", "g"]
    # Nobody saw when the first token came.
    assert "eval_duration" not in answer
    assert answer["eval_count"] == 5


def test_generate_answers_with_bare_texts() -> None:
    """Ollama's documentation, "Generate a completion"."""
    events = [*ANSWER[:10], End(finish=Finish.LENGTH)]

    answer = msgspec.json.decode(writer(is_chat=False).whole(events))

    assert (answer["response"], answer["thinking"]) == ("Hello", "let me")
    assert "message" not in answer
    assert answer["done_reason"] == "length"


def test_thoughts_are_left_out_for_who_wants_none() -> None:
    """Ours: `think: false` shows none, even of a model that cannot stop."""
    stream, whole = writer(think=False), writer(think=False)

    assert not any("thinking" in line["message"] for line in lines(stream.write(ANSWER)))
    assert "thinking" not in msgspec.json.decode(whole.whole(ANSWER))["message"]


def test_a_call_that_was_cut_off_is_left_out() -> None:
    """Ours: the dialect has arguments as an object, of which there is no half."""
    events = [Begin(), *part(0, PartKind.TOOL_CALL, '{"a": "b'), End(finish=Finish.LENGTH)]

    (last,) = lines(writer().write(events))

    assert "tool_calls" not in last["message"]
    assert last["done_reason"] == "length"


def test_a_request_to_load_is_answered_as_one() -> None:
    """Ollama's: a request without a message loads the model."""
    answer = msgspec.json.decode(writer().loaded())

    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert answer["message"] == {"role": "assistant", "content": ""}


def test_a_whole_answer_that_failed_is_an_error() -> None:
    """Ours: half an answer is none."""
    with pytest.raises(EngineError):
        writer().whole([Begin(), Fail(error=EngineError("broke"))])


kinds = st.sampled_from(PartKind)
texts = st.lists(st.text(min_size=1, max_size=5), max_size=4)
ends = st.one_of(
    st.builds(End, finish=st.sampled_from(Finish), usage=st.just(USAGE)),
    st.just(Fail(error=EngineError("broke"))),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[PartEvent]:
    """Any legal sequence; arguments of calls are anything at all."""
    events: list[PartEvent] = [Begin()]
    for index, (kind, pieces) in enumerate(draw(st.lists(st.tuples(kinds, texts), max_size=5))):
        events += part(index, kind, *pieces)
    cut = draw(st.integers(0, len(events)))
    end = draw(ends)
    return [*(events[:cut] if isinstance(end, Fail) else events), end]


def shown(events: Sequence[PartEvent], *kinds: PartKind) -> str:
    """Return the text of the parts of some kinds."""
    texts, kind = [], None
    for event in events:
        if isinstance(event, Open):
            kind = event.kind
        elif isinstance(event, Delta) and kind in kinds:
            texts.append(event.text)
    return "".join(texts)


@given(sequences(), st.booleans())
def test_any_sequence_becomes_lines_that_end_once(events: list[PartEvent], is_chat: bool) -> None:
    """Ours: every line is an object, the last alone is `done` or an error, no text is lost."""
    stream = writer(is_chat=is_chat)
    answer = lines(b"".join(stream.write([event]) for event in events))

    *before, last = answer
    assert all(line["done"] is False for line in before)
    assert ("error" in last) is isinstance(events[-1], Fail)
    assert "error" in last or last["done"] is True
    assert stream.fail(EngineError("late")) == b""
    assert stream.keep_alive() == b""
    messages = [line["message"] if is_chat else line for line in before]
    content = "".join(message["content" if is_chat else "response"] for message in messages)
    assert content == shown(events, PartKind.TEXT, PartKind.REFUSAL)
    thoughts = "".join(message.get("thinking", "") for message in messages)
    assert thoughts == shown(events, PartKind.REASONING)


@given(sequences())
def test_whole_and_stream_say_the_same(events: list[PartEvent]) -> None:
    """Ours: `stream` changes nothing but the form."""
    if isinstance(events[-1], Fail):
        return
    whole = msgspec.json.decode(writer().whole(events))["message"]
    messages = [line["message"] for line in lines(writer().write(events))]

    assert whole["content"] == "".join(message["content"] for message in messages)
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert whole.get("tool_calls", []) == calls
