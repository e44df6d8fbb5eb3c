"""Thoughts go by two names, and nothing else in an answer changes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import encode_json
from cortex_core.translate.reasoning_alias import with_reasoning_alias

SHORT, LONG = "reasoning", "reasoning_content"

# Texts that look as much like members as text can.
tricky = st.lists(
    st.sampled_from(['"', "\\", "reasoning", "reasoning_content", ":", ",", "{", "}", " ", "\n"])
    | st.text(max_size=3),
    max_size=12,
).map("".join)
thoughts = st.none() | tricky


@st.composite
def deltas(draw: st.DrawFn) -> dict[str, Any]:
    fields: dict[str, Any] = {"content": draw(thoughts), draw(tricky): draw(tricky)}
    fields |= {name: draw(thoughts) for name in draw(st.sets(st.sampled_from((SHORT, LONG))))}
    fields["tool_calls"] = [{"function": {"name": draw(tricky), "arguments": draw(tricky)}}]
    order = draw(st.permutations(sorted(fields)))
    return {name: fields[name] for name in order}


chunks = st.lists(deltas(), min_size=1, max_size=3).map(
    lambda drawn: {"id": "c", "choices": [{"index": 0, "delta": delta} for delta in drawn]}
)


def aliased(answer: dict[str, Any]) -> dict[str, Any]:
    """Give the answer that is due, by way of decoded JSON."""
    choices = []
    for choice in answer["choices"]:
        delta = dict(choice["delta"])
        if SHORT in delta or LONG in delta:
            delta.setdefault(SHORT, delta.get(LONG))
            delta.setdefault(LONG, delta.get(SHORT))
        choices.append({**choice, "delta": delta})
    return {**answer, "choices": choices}


def layouts(answer: dict[str, Any]) -> list[bytes]:
    compact = encode_json(answer)
    return [compact, msgspec.json.format(compact, indent=2), msgspec.json.format(compact, indent=0)]


@given(chunks)
def test_every_thought_gets_its_twin_and_no_text_is_touched(answer: dict[str, Any]) -> None:
    """Ours: whatever the strings hold, they come out as they went in."""
    for written in layouts(answer):
        assert msgspec.json.decode(with_reasoning_alias(written)) == aliased(answer)


@given(chunks)
def test_doing_it_twice_is_doing_it_once(answer: dict[str, Any]) -> None:
    """Ours: gateways may stand in front of gateways."""
    once = with_reasoning_alias(encode_json(answer))

    assert with_reasoning_alias(once) == once


@given(st.lists(chunks, min_size=1, max_size=3))
def test_a_stream_of_events_is_changed_event_by_event(answers: list[dict[str, Any]]) -> None:
    """Ours: events that have both names may stand beside events that have one."""
    stream = b"".join(b"data: " + encode_json(answer) + b"\n\n" for answer in answers)

    events = with_reasoning_alias(stream + b"data: [DONE]\n\n").split(b"\n\n")

    read = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert read == [aliased(answer) for answer in answers]
    assert events[-2:] == [b"data: [DONE]", b""]


@given(tricky)
def test_answers_without_thoughts_are_the_same_object(text: str) -> None:
    """Ours: nothing is copied when there is nothing to do."""
    data = encode_json({"choices": [{"message": {"role": "assistant", "content": text}}]})

    assert with_reasoning_alias(data) == data
    if b'"reasoning' not in data:
        assert with_reasoning_alias(data) is data


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"reasoning":"a"}', b'{"reasoning":"a","reasoning_content":"a"}'),
        (b'{"reasoning_content":null}', b'{"reasoning_content":null,"reasoning":null}'),
        (
            b'{ "reasoning" : "\\"" , "b":1}',
            b'{ "reasoning" : "\\"","reasoning_content":"\\"" , "b":1}',
        ),
        (b'{"reasoning":{"effort":"low"}}', b'{"reasoning":{"effort":"low"}}'),
        (b'{"a\\"reasoning":"b"}', b'{"a\\"reasoning":"b"}'),
        (b": reasoning\n\n", b": reasoning\n\n"),
        (b"", b""),
    ],
)
def test_members_are_found_by_their_quotes(before: bytes, after: bytes) -> None:
    """RFC 8259 section 7: a quote within a string has a backslash before it."""
    assert with_reasoning_alias(before) == after


def test_a_comment_between_events_cannot_confuse_it() -> None:
    """Ours: keep-alive comments hold anything, an odd quote and a brace among it."""
    both = b'data: {"choices":[{"delta":{"reasoning":"a","reasoning_content":"a"}}]}\n\n'
    one = b'data: {"choices":[{"delta":{"reasoning":"b"}}]}\n\n'
    comment = b": it's \"here {\n\n"

    changed = with_reasoning_alias(both + comment + one)

    assert changed == both + comment + one.replace(b'"b"', b'"b","reasoning_content":"b"')
