"""Items of a conversation, as callers send them and as they are kept.

Source: OpenAI API reference, "Create a model response", `input` (read November 2026).
"""

from collections.abc import Iterable, Mapping

import msgspec

from cortex_core.errors import InvalidRequestError


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message or of a tool's output: text, an image, a file, sound, a refusal."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    file_data: str | None = None
    """A `data:` URL, or bare base64."""
    filename: str | None = None
    input_audio: Mapping[str, str] | None = None


Content = str | tuple[ContentPart, ...]


class MessageItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was said."""

    role: str
    content: Content


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a function by the model."""

    call_id: str
    name: str
    arguments: str = ""
    namespace: str | None = None


class CustomCallItem(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a custom tool by the model."""

    call_id: str
    name: str
    input: str = ""
    namespace: str | None = None


class CallOutputItem(msgspec.Struct, frozen=True, kw_only=True):
    """What a function or a custom tool gave."""

    call_id: str
    output: Content


class ReasoningPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a summary, or of thoughts."""

    text: str = ""


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    """What the model thought."""

    summary: tuple[ReasoningPart, ...] = ()
    content: tuple[ReasoningPart, ...] | None = None
    encrypted_content: str | None = None


class ReferenceItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item that was kept, by its id."""

    id: str


class HostedItem(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool of the hosted service did; nothing that a model here could read."""

    type: str


Item = (
    MessageItem
    | FunctionCallItem
    | CustomCallItem
    | CallOutputItem
    | ReasoningItem
    | ReferenceItem
    | HostedItem
)

_DECODERS: Mapping[str, msgspec.json.Decoder[Item]] = {
    "message": msgspec.json.Decoder(MessageItem),
    "function_call": msgspec.json.Decoder(FunctionCallItem),
    "function_call_output": msgspec.json.Decoder(CallOutputItem),
    "custom_tool_call": msgspec.json.Decoder(CustomCallItem),
    "custom_tool_call_output": msgspec.json.Decoder(CallOutputItem),
    "reasoning": msgspec.json.Decoder(ReasoningItem),
    "item_reference": msgspec.json.Decoder(ReferenceItem),
}

_HOSTED = frozenset(
    {
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "file_search_call",
        "ghost_snapshot",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)


class _Kind(msgspec.Struct, frozen=True, kw_only=True):
    type: str | None = None
    role: str | None = None
    id: str | None = None


_KIND = msgspec.json.Decoder(_Kind)


def decode_items(raws: Iterable[msgspec.Raw | bytes], where: str = "input") -> tuple[Item, ...]:
    """Return items from their JSON.

    Args:
        raws: each a JSON object.
        where: what they are a part of, for errors.

    Raises:
        InvalidRequestError: one is malformed, or of a type that is not known.
    """
    return tuple(_item(raw, f"{where}.{number}") for number, raw in enumerate(raws))


def _item(raw: msgspec.Raw | bytes, path: str) -> Item:
    try:
        kind = _KIND.decode(raw)
        name = kind.type
        if name is None:
            # Both are written without a type, the second by OpenAI's own SDKs.
            name = "message" if kind.role is not None or kind.id is None else "item_reference"
        if name in _HOSTED:
            return HostedItem(type=name)
        decoder = _DECODERS.get(name)
        if decoder is not None:
            return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(str(error), param=path) from None
    raise InvalidRequestError(f"items of type {name!r} are not known", param=f"{path}.type")
