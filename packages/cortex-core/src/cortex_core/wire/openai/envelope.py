"""The few fields of a request that routing and normalising need; the rest stays opaque."""

import msgspec


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`stream_options` of a streaming request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of any OpenAI request.

    Source: OpenAI API reference, "Create chat completion" (read November 2026).
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET


class MessageEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a message."""

    role: str
    content: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    """Legacy form of `tool_calls`."""


class ToolEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of an entry of `tools`."""

    type: str = "function"


class ChatEnvelope(Envelope, frozen=True, kw_only=True):
    """What the gateway reads of a chat request that an engine may get as it is.

    Fields of type `Raw` are empty when they are missing and `null` when they are null.
    """

    messages: tuple[MessageEnvelope, ...]
    tools: tuple[ToolEnvelope, ...] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    modalities: tuple[str, ...] | None = None
    audio: msgspec.Raw = msgspec.Raw()
    thinking_token_budget: msgspec.Raw = msgspec.Raw()


ENVELOPE_DECODER = msgspec.json.Decoder(Envelope)

CHAT_ENVELOPE_DECODER = msgspec.json.Decoder(ChatEnvelope)
