"""Answers of `GET /v1/models`: one object that the SDKs of both dialects accept.

Sources: OpenAI API reference "List models"; Anthropic API reference "List models" (both read
November 2026). Both SDKs ignore keys that they do not know.
"""

from typing import Literal

import msgspec

from cortex_core.harness import Capabilities, Limit


class ModelLocation(msgspec.Struct, frozen=True, kw_only=True):
    """A node that has the model, in whatever state."""

    node: str
    status: str
    vram_estimate_mb: int | None = None


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    """One model or alias."""

    id: str
    created: int
    """Epoch seconds."""
    display_name: str
    created_at: str
    """RFC 3339."""
    loaded: bool
    """Whether a reachable node serves it now."""
    feasible_on: tuple[str, ...] = ()
    """Nodes that could ever hold it, by name."""
    locations: tuple[ModelLocation, ...] = ()
    limit: Limit | None = None
    max_model_len: int | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: Capabilities | None = None
    alias_of: str | None = None
    parent: str | None = None
    """Its base, where it is an adapter; vLLM's name for it."""
    reason: str | None = None
    """Why it cannot be served now, when that is known."""
    object: Literal["model"] = "model"
    owned_by: str = "cortex"
    type: Literal["model"] = "model"
    lifecycle: str = "active"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The whole list, sorted by id."""

    data: tuple[ModelObject, ...]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False
    object: Literal["list"] = "list"
