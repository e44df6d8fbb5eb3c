"""Content blocks of messages, as callers and upstreams send them.

Source: Anthropic API reference, "Messages" (read November 2026). Unknown fields are ignored on
read (`cache_control` and `citations` among them), and an unknown `type` is an error that names
its path.
"""

from collections.abc import Mapping

import msgspec

from cortex_core.wire.anthropic.tools import ToolDefinition


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an image or a document is.

    `base64` has `media_type` and `data`, `url` has `url`, `text` has `data`, `content` has
    `content`, and `file` has `file_id`.
    """

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: "str | tuple[TextBlock | ImageBlock, ...] | None" = None


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class ImageBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """An image."""

    source: Source


class DocumentBlock(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag="document",
    omit_defaults=True,
):
    """A document: text, a PDF, or blocks."""

    source: Source
    title: str | None = None
    context: str | None = None


class SearchResultBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="search_result"
):
    """What a caller's own search has found."""

    source: str
    title: str
    content: tuple[TextBlock, ...] = ()


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a tool by the model."""

    id: str
    name: str
    input: Mapping[str, object] = msgspec.field(default_factory=dict)


class ToolReferenceBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_reference"
):
    """Brings in a tool whose loading was deferred."""

    tool_name: str


class ToolResultBlock(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag="tool_result",
    omit_defaults=True,
):
    """What a tool gave."""

    tool_use_id: str
    content: (
        str
        | tuple[
            TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock, ...
        ]
        | None
    ) = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """What the model thought; empty where the caller asked for it to be left out."""

    thinking: str
    signature: str = ""
    """Opaque, made by whoever generated the block."""


class RedactedThinkingBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="redacted_thinking"
):
    """Thoughts that only the hosted service can read."""

    data: str = ""


class ToolChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tool that an addition or a removal is about.

    Of type `tool_reference` (`name`), or `tool_definition` (`definition`, an entry of `tools`).
    """

    type: str
    name: str | None = None
    definition: ToolDefinition | None = None


class ToolAdditionBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_addition"
):
    """From here on a tool is there (beta; in system messages only)."""

    tool: ToolChange


class ToolRemovalBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_removal"
):
    """From here on a tool is gone (beta; in system messages only)."""

    tool: ToolChange


class ServerToolUseBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="server_tool_use"
):
    """A call of a tool that the hosted service ran, as history."""

    id: str
    name: str
    input: Mapping[str, object] = msgspec.field(default_factory=dict)


class McpToolUseBlock(ServerToolUseBlock, frozen=True, kw_only=True, tag="mcp_tool_use"):
    """A call of a tool of an MCP server that the hosted service spoke to, as history."""

    server_name: str = ""


class ServerToolResultBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="web_search_tool_result"
):
    """What a tool gave that the hosted service ran, as history."""

    tool_use_id: str = ""
    content: msgspec.Raw = msgspec.Raw()
    """Of many shapes, none of which a model here has seen before."""


class WebFetchResultBlock(ServerToolResultBlock, frozen=True, tag="web_fetch_tool_result"):
    """A fetched page."""


class CodeResultBlock(ServerToolResultBlock, frozen=True, tag="code_execution_tool_result"):
    """What code printed."""


class BashResultBlock(ServerToolResultBlock, frozen=True, tag="bash_code_execution_tool_result"):
    """What a command printed."""


class EditorResultBlock(
    ServerToolResultBlock, frozen=True, tag="text_editor_code_execution_tool_result"
):
    """What an editor did."""


class ToolSearchResultBlock(ServerToolResultBlock, frozen=True, tag="tool_search_tool_result"):
    """Tools that a search has found: references, in `content`."""


class McpResultBlock(ServerToolResultBlock, frozen=True, tag="mcp_tool_result"):
    """What a tool of an MCP server gave."""


class ContainerUploadBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="container_upload"
):
    """A file in a container of the hosted service."""

    file_id: str = ""


class McpToolListingBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mcp_tool_listing"
):
    """Tools of an MCP server that the hosted service spoke to, as history."""


class FallbackBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="fallback"):
    """A note that the hosted service went on with another model."""


class CompactionBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="compaction"
):
    """A summary that stands for everything before it."""

    content: str | None = None


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolUseBlock
    | ToolResultBlock
    | ToolReferenceBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolAdditionBlock
    | ToolRemovalBlock
    | ServerToolUseBlock
    | McpToolUseBlock
    | ServerToolResultBlock
    | WebFetchResultBlock
    | CodeResultBlock
    | BashResultBlock
    | EditorResultBlock
    | ToolSearchResultBlock
    | McpResultBlock
    | ContainerUploadBlock
    | McpToolListingBlock
    | FallbackBlock
    | CompactionBlock
)
"""Any block of a request."""
