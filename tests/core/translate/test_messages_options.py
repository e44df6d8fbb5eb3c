"""What a caller of messages gets to see of an answer, as its request says."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given

from cortex_core.translate.messages_writer import MessagesWriter, messages_writer_for
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
)
from cortex_core.translate.sealed import unseal
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER
from tests.core.translate.part_sequences import part_sequences
from tests.core.translate.well_formed_messages import check_messages

CALL = Open(index=0, kind=PartKind.TOOL_CALL, call_id="call_1", name="f")
SECOND_CALL = Open(index=1, kind=PartKind.TOOL_CALL, call_id="call_2", name="g")
TEXT = Open(index=0, kind=PartKind.TEXT)
THOUGHT = Open(index=0, kind=PartKind.REASONING)
ONE_CALL = {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}


def writer(**fields: object) -> MessagesWriter:
    body = msgspec.json.encode({"model": "m", "messages": [], "max_tokens": 9, **fields})
    request = MESSAGES_REQUEST_DECODER.decode(body)
    return messages_writer_for(request, message_id="msg_1", request_id="req-1")


def whole(events: Sequence[PartEvent], **fields: object) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(writer(**fields).whole(events))
    return answer


def sequence(*parts: PartEvent, finish: Finish = Finish.STOP) -> list[PartEvent]:
    return [Begin(), *parts, End(finish=finish)]


@given(part_sequences())
def test_hidden_thoughts_are_nowhere_in_the_answer(events: list[PartEvent]) -> None:
    """Ours: not even as a signature, since the caller did not ask for thoughts."""
    marked = [
        Delta(text="SECRET" + event.text)
        if isinstance(event, Delta) and kind_at(events, position) is PartKind.REASONING
        else event
        for position, event in enumerate(events)
    ]

    stream = check_messages(writer().write(marked))

    assert not any(block["type"] == "thinking" for block in stream.blocks)
    assert "SECRET" not in repr(stream)
    if not isinstance(events[-1], Fail):
        assert "SECRET" not in repr(whole(marked))


def kind_at(events: Sequence[PartEvent], position: int) -> PartKind | None:
    opened = [event for event in events[:position] if isinstance(event, Open)]
    return opened[-1].kind if opened else None


@pytest.mark.parametrize("finish", [Finish.TOOL_CALLS, Finish.LENGTH])
def test_a_single_call_is_all_that_is_shown(finish: Finish) -> None:
    """protocols.md 2.5: engines obey `disable_parallel_tool_use` late or not at all."""
    events = sequence(
        CALL, Delta(text="{}"), Close(), SECOND_CALL, Delta(text="{"), Close(), finish=finish
    )

    stream = check_messages(writer(**ONE_CALL).write(events))
    message = whole(events, **ONE_CALL)

    assert [block["name"] for block in stream.blocks] == ["f"]
    assert [block["name"] for block in message["content"]] == ["f"]
    assert message["stop_reason"] == "tool_use"


def test_a_request_for_no_tokens_gets_none() -> None:
    """protocols.md 2.1: `max_tokens` 0 fills caches only."""
    events = sequence(TEXT, Delta(text="x"), Close(), finish=Finish.LENGTH)

    stream = check_messages(writer(max_tokens=0).write(events))
    message = whole(events, max_tokens=0)

    assert "x" not in [block["text"] for block in stream.blocks]
    assert [block["text"] for block in message["content"]] == [""]
    assert message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("thinking", "types"),
    [
        (None, ["text"]),
        ({"type": "disabled"}, ["text"]),
        ({"type": "enabled", "budget_tokens": 2000}, ["thinking", "text"]),
        ({"type": "adaptive", "display": "omitted"}, ["thinking", "text"]),
    ],
)
def test_a_request_decides_what_is_seen_of_thoughts(
    thinking: dict[str, object] | None, types: list[str]
) -> None:
    """protocols.md 2.6: no `thinking` means none."""
    fields = {} if thinking is None else {"thinking": thinking}
    events = sequence(
        Open(index=0, kind=PartKind.REASONING),
        Delta(text="hm"),
        Close(),
        TEXT,
        Delta(text="x"),
        Close(),
    )

    message = whole(events, **fields)

    assert [block["type"] for block in message["content"]] == types
    if types[0] == "thinking":
        is_omitted = thinking is not None and thinking.get("display") == "omitted"
        assert message["content"][0]["thinking"] == ("" if is_omitted else "hm")
        assert unseal(message["content"][0]["signature"]) == "hm"


@given(part_sequences(may_fail=False))
def test_the_only_call_is_the_last_block(events: list[PartEvent]) -> None:
    """Ours: whatever an engine sends after it."""
    stream = check_messages(writer(**ONE_CALL).write(events))

    calls = [block["type"] == "tool_use" for block in stream.blocks]
    assert sum(calls) <= 1
    assert True not in calls[:-1]
