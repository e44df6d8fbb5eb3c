"""Tools that a caller offers to the model.

Source: Anthropic API reference, "Messages" and "Tool use" (read November 2026).
"""

from collections.abc import Mapping

import msgspec


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of `tools`.

    A caller's own tool has `input_schema`, and no `type` or `custom`. A versioned `type` such
    as `bash_20250124` is a tool that the vendor defines, run by the caller or by the vendor.
    """

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: Mapping[str, object] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    max_characters: int | None = None
    """Of the text editor."""
    display_width_px: int | None = None
    """Of the computer tool, like the two after it."""
    display_height_px: int | None = None
    display_number: int | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`tool_choice`: `auto`, `any`, `none`, or `tool` with a name."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None
