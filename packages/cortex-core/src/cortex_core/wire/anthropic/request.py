"""Body of `POST /v1/messages` and of `POST /v1/messages/count_tokens`.

Source: Anthropic API reference, "Create a Message" and "Count tokens in a Message" with their
beta fields (read November 2026).
"""

from collections.abc import Mapping

import msgspec

from cortex_core.wire.anthropic.blocks import Block, TextBlock
from cortex_core.wire.anthropic.tools import ToolChoice, ToolDefinition


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message; several of one role in a row are one turn."""

    role: str
    """`user`, `assistant`, or `system` in mid-conversation."""
    content: str | tuple[Block, ...]


class Thinking(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`thinking`."""

    type: str
    """`enabled`, `adaptive`, `between_tools` or `disabled`."""
    budget_tokens: int | None = None
    display: str | None = None
    """`summarized` or `omitted`."""


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Form that the answer must have."""

    type: str
    """`json_schema`."""
    schema: Mapping[str, object] | None = None


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`output_config`."""

    effort: str | None = None
    """`low`, `medium`, `high`, `xhigh` or `max`."""
    format: OutputFormat | None = None


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`metadata`."""

    user_id: str | None = None


class Thread(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`thread` (beta): only the new messages are sent."""

    type: str = ""


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a caller asks for; fields without a meaning for an engine are not read.

    `max_tokens` may be missing, as it is when tokens are counted. Fields of type `Raw` are read
    only to see whether they are there.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    system: str | tuple[TextBlock, ...] | None = None
    stream: bool | None = None
    stop_sequences: tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: tuple[ToolDefinition, ...] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """Older name of `output_config.format`."""
    metadata: Metadata | None = None
    thread: Thread | None = None
    container: msgspec.Raw = msgspec.Raw()
    mcp_servers: msgspec.Raw = msgspec.Raw()
    compaction: msgspec.Raw = msgspec.Raw()
    context_management: msgspec.Raw = msgspec.Raw()
    fallbacks: msgspec.Raw = msgspec.Raw()


MESSAGES_REQUEST_DECODER = msgspec.json.Decoder(MessagesRequest)
