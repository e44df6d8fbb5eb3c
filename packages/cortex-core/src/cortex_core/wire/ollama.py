"""Ollama's API, as far as it is about using models and not about keeping them.

Source: Ollama's API documentation (`docs/api.md` of its repository, read November 2026).
Unknown fields are ignored on read; defaults are left out on write.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from cortex_core.wire.openai.chat import Tool


class OllamaFunction(msgspec.Struct, frozen=True, kw_only=True):
    """The function of a call; unlike OpenAI's its arguments are an object."""

    name: str
    arguments: Mapping[str, object] = msgspec.field(default_factory=dict)
    index: int = 0


class OllamaCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call."""

    function: OllamaFunction
    id: str | None = None


class OllamaMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation, or what a line adds to an answer."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: tuple[str, ...] | None = None
    """Bare base64, without the media type."""
    tool_calls: tuple[OllamaCall, ...] | None = None
    tool_name: str | None = None
    """Of a result: the function that gave it."""
    tool_call_id: str | None = None


class OllamaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/api/chat` (`messages`) and of `/api/generate` (`prompt`)."""

    model: str
    stream: bool | None = None
    """Absent means True."""
    options: Mapping[str, object] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    format: str | Mapping[str, object] | None = None
    """`json`, or a JSON schema."""
    logprobs: bool | None = None
    messages: tuple[OllamaMessage, ...] | None = None
    tools: tuple[Tool, ...] | None = None
    prompt: str | None = None
    system: str | None = None
    images: tuple[str, ...] | None = None
    suffix: str | None = None
    template: str | None = None
    context: tuple[int, ...] | None = None
    raw: bool | None = None


class OllamaAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of a stream, or a whole answer; durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool
    message: OllamaMessage | None = None
    response: str | None = None
    """Instead of `message` in answers of `/api/generate`, and `thinking` beside it."""
    thinking: str | None = None
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    """From the request's arrival until it was sent to a replica."""
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
