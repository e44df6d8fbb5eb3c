"""Answers as chat completions: chunks and whole answers that OpenAI's SDK accepts."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cortex_core.errors import EngineError
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.chat_writer import ChatWriter
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
from cortex_core.wire.openai.chat import TokenLogprob
from tests.core.translate.part_sequences import Told, check_legal, cuts, part_sequences, split, told
from tests.core.translate.well_formed_chat import check_chat

USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=5, reasoning_tokens=2)
CALLS: list[PartEvent] = [
    Begin(),
    Open(index=0, kind=PartKind.TEXT),
    Delta(text="hi"),
    Close(),
    Open(index=1, kind=PartKind.TOOL_CALL, call_id="call_1", name="f"),
    Delta(text='{"a"'),
    Delta(text=":1}"),
    Close(),
    Open(index=2, kind=PartKind.TOOL_CALL, call_id="call_2", name="g"),
    Close(),
    End(finish=Finish.TOOL_CALLS, usage=USAGE),
]


def writer(
    *, include_usage: bool = True, legacy_functions: bool = False, single_call: bool = False
) -> ChatWriter:
    return ChatWriter(
        model="m",
        answer_id="chatcmpl-1",
        created=7,
        include_usage=include_usage,
        legacy_functions=legacy_functions,
        single_call=single_call,
    )


def whole(events: Sequence[PartEvent], writes: ChatWriter | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode((writes or writer()).whole(events))
    return answer


def joined(events: Sequence[PartEvent], kind: PartKind) -> str:
    return "".join(part.text for part in told(events) if part.kind is kind)


@given(part_sequences(), st.booleans())
def test_any_sequence_becomes_a_well_formed_stream_with_the_same_content(
    events: list[PartEvent], include_usage: bool
) -> None:
    """OpenAI's reference; every chunk is one of the SDK's type."""
    seen = check_chat(
        writer(include_usage=include_usage).write(events), include_usage=include_usage
    )

    for chunk in seen.chunks:
        ChatCompletionChunk.model_validate(chunk)
    if isinstance(events[-1], Fail):
        assert seen.error is not None
        return
    assert seen.content == joined(events, PartKind.TEXT)
    assert seen.reasoning == joined(events, PartKind.REASONING)
    assert seen.refusal == joined(events, PartKind.REFUSAL)
    assert [(c["id"], c["name"], c["arguments"]) for c in seen.calls] == [
        (part.call_id, part.name, part.text or "{}")
        for part in told(events)
        if part.kind is PartKind.TOOL_CALL
    ]


@given(part_sequences(), st.data())
def test_events_one_by_one_give_the_same_bytes(
    events: list[PartEvent], data: st.DataObject
) -> None:
    """Ours: how the upstream's bytes were cut cannot be seen."""
    cut = data.draw(st.integers(0, len(events)))
    pieces = writer()

    assert pieces.write(events[:cut]) + pieces.write(events[cut:]) == writer().write(events)


@given(part_sequences(may_fail=False))
def test_a_whole_answer_is_what_the_stream_adds_up_to(events: list[PartEvent]) -> None:
    """Ours: a caller sees the same answer whichever way it asks."""
    seen = check_chat(writer().write(events), include_usage=True)

    answer = whole(events)

    ChatCompletion.model_validate(answer)
    (choice,) = answer["choices"]
    message = choice["message"]
    assert (message["content"] or "") == seen.content
    assert message.get("reasoning", "") == message.get("reasoning_content", "") == seen.reasoning
    assert (message["refusal"] or "") == seen.refusal
    assert [
        {"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())
    ] == seen.calls
    assert choice["finish_reason"] == seen.finish
    assert answer["usage"] == seen.usage


@given(part_sequences(may_fail=False), cuts)
def test_what_is_written_is_read_as_it_was(events: list[PartEvent], places: set[int]) -> None:
    """Ours: other than empty parts, stop sequences, and parts of one kind in a row."""
    reader = ChatReader()

    got = [e for piece in split(writer().write(events), places) for e in reader.feed(piece)]

    check_legal(got)
    assert merged(told(got)) == merged(told(events))
    assert isinstance(got[-1], End)
    assert isinstance(events[-1], End)
    assert got[-1].usage == events[-1].usage
    window = {Finish.WINDOW: Finish.LENGTH}
    assert got[-1].finish is window.get(events[-1].finish, events[-1].finish)


def merged(parts: Sequence[Told]) -> list[Told]:
    """Return parts as this dialect can tell them apart."""
    kept: list[Told] = []
    for part in parts:
        if part.kind is PartKind.TOOL_CALL:
            kept.append(msgspec.structs.replace(part, text=part.text or "{}"))
        elif kept and kept[-1].kind is part.kind:
            kept[-1] = Told(kind=part.kind, text=kept[-1].text + part.text)
        elif part.text:
            kept.append(part)
    return kept


def test_a_stream_is_byte_for_byte_what_clients_were_seen_to_take() -> None:
    """protocols.md 5.3: id, type and name come once, and `[DONE]` is last."""
    chunks = writer(include_usage=False).write(CALLS).decode().split("\n\n")

    head = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m"'
    rest = ',"logprobs":null,"finish_reason":null}]}'
    assert chunks == [
        *(
            f'data: {{{head},"choices":[{{"index":0,"delta":{delta}{rest}'
            for delta in (
                '{"role":"assistant","content":""}',
                '{"content":"hi"}',
                '{"tool_calls":[{"index":0,"id":"call_1","type":"function",'
                '"function":{"name":"f","arguments":""}}]}',
                '{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\""}}]}',
                '{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}',
                '{"tool_calls":[{"index":1,"id":"call_2","type":"function",'
                '"function":{"name":"g","arguments":""}}]}',
                '{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]}',
            )
        ),
        f'data: {{{head},"choices":[{{"index":0,"delta":{{}},"logprobs":null,'
        '"finish_reason":"tool_calls"}]}',
        "data: [DONE]",
        "",
    ]


def test_usage_comes_last_and_only_when_asked_for() -> None:
    """OpenAI's reference, `stream_options`."""
    asked = check_chat(writer().write(CALLS), include_usage=True)

    assert asked.usage == {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert b"usage" not in writer(include_usage=False).write(CALLS)


def test_content_is_null_beside_calls_alone() -> None:
    """protocols.md 5.2: null, not missing; and no empty list of calls."""
    calls = [CALLS[0], *CALLS[4:]]

    with_calls = whole(calls)["choices"][0]["message"]
    without = whole([Begin(), End(finish=Finish.STOP)])["choices"][0]["message"]

    assert with_calls["content"] is None
    assert without["content"] == ""
    assert "tool_calls" not in without


def test_the_legacy_form_has_the_first_call_alone() -> None:
    """OpenAI's reference: `function_call`, for callers that sent `functions`."""
    seen = check_chat(writer(legacy_functions=True).write(CALLS), include_usage=True)
    (choice,) = whole(CALLS, writer(legacy_functions=True))["choices"]

    assert seen.function_call == {"name": "f", "arguments": '{"a":1}'}
    assert seen.calls == []
    assert seen.finish == choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == seen.function_call
    assert "tool_calls" not in choice["message"]


@given(part_sequences(may_fail=False))
def test_a_single_call_is_all_that_is_shown(events: list[PartEvent]) -> None:
    """OpenAI's reference: `parallel_tool_calls` false means at most one."""
    seen = check_chat(writer(single_call=True).write(events), include_usage=True)
    (choice,) = whole(events, writer(single_call=True))["choices"]

    first = [part.call_id for part in told(events) if part.kind is PartKind.TOOL_CALL][:1]
    assert [call["id"] for call in seen.calls] == first
    assert [call["id"] for call in choice["message"].get("tool_calls", ())] == first


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish.STOP, "stop"),
        (Finish.LENGTH, "length"),
        (Finish.WINDOW, "length"),
        (Finish.TOOL_CALLS, "tool_calls"),
        (Finish.CONTENT_FILTER, "content_filter"),
    ],
)
def test_every_finish_has_its_reason(finish: Finish, reason: str) -> None:
    """protocols.md 10.2."""
    assert whole([Begin(), End(finish=finish)])["choices"][0]["finish_reason"] == reason


def test_probabilities_go_with_their_text() -> None:
    """OpenAI's reference: `choices[].logprobs.content`."""
    logprob = TokenLogprob(token="a", logprob=-0.5, bytes=(97,))
    events: list[PartEvent] = [
        Begin(),
        Open(index=0, kind=PartKind.TEXT),
        Delta(text="a", logprobs=(logprob,)),
        Close(),
        End(finish=Finish.STOP, usage=USAGE),
    ]

    seen = check_chat(writer().write(events), include_usage=True)
    answer = whole(events)

    expected = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
    assert seen.chunks[1]["choices"][0]["logprobs"] == expected
    assert answer["choices"][0]["logprobs"] == expected


def test_an_error_is_a_plain_event_without_done() -> None:
    """protocols.md 5.3: SDKs raise on it, and a cut stream must not look complete."""
    writes = writer()
    writes.write(CALLS[:3])

    got = writes.fail(EngineError("boom"))

    assert got == (
        b'data: {"error":{"message":"boom","type":"server_error","param":null,'
        b'"code":"engine_error"}}\n\n'
    )
    assert writes.fail(EngineError("again")) == b""
    assert writes.write(CALLS[3:]) == b""


def test_an_error_of_a_whole_answer_is_raised() -> None:
    """Ours: whoever asked answers with its status."""
    with pytest.raises(EngineError):
        writer().whole([Begin(), Fail(error=EngineError("boom"))])


def test_what_keeps_alive_is_a_comment() -> None:
    """protocols.md 1.7."""
    assert writer().keep_alive().startswith(b": ")
