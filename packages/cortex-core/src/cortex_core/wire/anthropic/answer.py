"""Answers of `POST /v1/messages`: the message, and the events of a stream.

Source: Anthropic API reference, "Messages" and "Streaming messages" (read November 2026). The
same structs are written for callers and read from upstreams that speak this dialect.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`usage.output_tokens_details`."""

    thinking_tokens: int = 0


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`usage`; the whole prompt is the sum of the three input counts."""

    input_tokens: int = 0
    """Prompt tokens that came from no cache."""
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails | None = None
    service_tier: str = "standard"


class TextContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text of an answer."""

    text: str
    citations: None = None


class ThinkingContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Thoughts before an answer."""

    thinking: str
    signature: str = ""


class ToolUseContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: Mapping[str, object] = msgspec.field(default_factory=dict)


class StopDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`stop_details` of a refusal."""

    type: Literal["refusal"] = "refusal"
    category: str | None = None
    explanation: str | None = None


class MessageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A message as an answer, whole or as a stream begins it."""

    id: str
    model: str
    content: tuple[TextContent | ThinkingContent | ToolUseContent, ...] = ()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: MessageUsage = MessageUsage()
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
