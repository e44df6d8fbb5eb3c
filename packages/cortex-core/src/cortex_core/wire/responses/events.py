"""Events of a stream of the Responses dialect.

Source: OpenAI API reference, "Streaming events" (read November 2026). Every event has its type
and a number that counts up.
"""

import msgspec

from cortex_core.wire.openai.chat import TokenLogprob
from cortex_core.wire.responses.answer import (
    OutputItem,
    OutputText,
    ReasoningText,
    Refusal,
    Response,
    SummaryText,
)

Part = OutputText | Refusal | SummaryText | ReasoningText


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.created`, `.in_progress`, `.completed`, `.incomplete` and `.failed`."""

    type: str
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.output_item.added` and `.done`."""

    type: str
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.content_part.added` and `.done`."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Part


class SummaryPartEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.reasoning_summary_part.added` and `.done`."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    summary_index: int
    part: Part


class TextEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A delta of text, a refusal or thoughts within a part, or the whole of it."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    refusal: str | msgspec.UnsetType = msgspec.UNSET
    logprobs: tuple[TokenLogprob, ...] | msgspec.UnsetType = msgspec.UNSET


class SummaryTextEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A delta of a summary, or the whole of it."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    summary_index: int
    delta: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET


class ArgumentsEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A delta of a call's arguments or input, or the whole of it."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    delta: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    input: str | msgspec.UnsetType = msgspec.UNSET


Event = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | SummaryPartEvent
    | TextEvent
    | SummaryTextEvent
    | ArgumentsEvent
)
