"""Body of `POST /v1/responses` and of `POST /v1/responses/input_tokens`.

Source: OpenAI API reference, "Create a model response" (read November 2026).
"""

from collections.abc import Mapping

import msgspec


class ResponseTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of `tools`; `function` and `custom` are the caller's, `namespace` groups them."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    strict: bool | None = None
    format: Mapping[str, object] | None = None
    """Grammar of a custom tool's input."""
    tools: "tuple[ResponseTool, ...] | None" = None
    """Of a namespace."""


class NamedTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool by its name."""

    type: str
    name: str = ""
    namespace: str | None = None


class ToolChoiceObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`tool_choice` that is more than a word."""

    type: str
    name: str | None = None
    mode: str | None = None
    """Of `allowed_tools`: `auto` or `required`."""
    tools: tuple[NamedTool, ...] | None = None
    """Of `allowed_tools`."""


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning`."""

    effort: str | None = None
    summary: str | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`text.format`."""

    # Without a default: it would be left out on write, and clients tell formats apart by it.
    type: str
    name: str | None = None
    schema: Mapping[str, object] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ConversationId(msgspec.Struct, frozen=True, kw_only=True):
    """`conversation` as an object."""

    id: str


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks for; fields of type `Raw` are looked at only to see whether they are."""

    model: str
    input: str | tuple[msgspec.Raw, ...] | None = None
    """Text, or items that `decode_items` reads."""
    instructions: str | None = None
    tools: tuple[ResponseTool, ...] | None = None
    tool_choice: str | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationId | None = None
    include: tuple[str, ...] | None = None
    metadata: Mapping[str, str] | None = None
    truncation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    prompt: msgspec.Raw = msgspec.Raw()
    context_management: msgspec.Raw = msgspec.Raw()


RESPONSES_REQUEST_DECODER = msgspec.json.Decoder(ResponsesRequest)
