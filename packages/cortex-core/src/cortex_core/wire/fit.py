"""What a neuron says of a load before it is tried: `POST /models/fit`, and a gateway of all.

A neuron is asked with the `LoadRequest` that would load the model. Sizes are bytes.
"""

import enum
from collections.abc import Mapping

import msgspec

from cortex_core.harness import Capabilities, Limit
from cortex_core.ids import ModelId, NodeName


class Verdict(enum.StrEnum):
    """What one check comes to."""

    OK = "ok"
    WARNING = "warning"
    """It would load, and something of it would not be as one may expect."""
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Nobody can say before it is tried; no reason to refuse it."""


class CheckName(enum.StrEnum):
    """All that is checked, in this order."""

    OPTIONS = "options"
    WEIGHTS = "weights"
    FORMAT = "format"
    ARCHITECTURE = "architecture"
    QUANTIZATION = "quantization"
    TENSOR_PARALLEL = "tensor_parallel"
    CONTEXT = "context"
    MEMORY = "memory"
    """Against all that the devices have."""
    ROOM = "room"
    """Against what they have free now."""
    CHAT_TEMPLATE = "chat_template"
    TOOL_PARSER = "tool_parser"
    REASONING_PARSER = "reasoning_parser"


class FitCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One check."""

    name: str
    """One of `CheckName`; a later version may have more."""
    verdict: str
    """One of `Verdict`."""
    message: str
    needed: int | None = None
    """The number that is asked for: bytes on each device, tokens, or parts to divide into."""
    limit: int | None = None
    """The number that it is compared with, in the same unit."""


class FitDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was considered."""

    index: int
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None


class FitNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Device memory that the load takes, over all its devices; `None` is not known."""

    total_bytes: int | None = None
    """What the ledger reckons with."""
    source: str | None = None
    """Where that comes from: `measured` by an earlier load here, `given` with the load, or
    `estimated` from the files as the sum of the three parts."""
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    overhead_bytes: int | None = None


class FitSuggestion(msgspec.Struct, frozen=True, kw_only=True):
    """The nearest load that would pass; what is `None` stays as it was asked for."""

    max_model_len: int | None = None
    tensor_parallel: int | None = None
    vram_mb: int | None = None
    message: str = ""
    """The same in words."""


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /models/fit`."""

    model: str
    ok: bool
    """Whether no check failed: it would load now."""
    checks: tuple[FitCheck, ...] = ()
    devices: tuple[FitDevice, ...] = ()
    """Those that were named, else all of the node."""
    needed: FitNeed = FitNeed()
    suggestion: FitSuggestion | None = None
    """`None` as well when nothing near would pass."""
    capabilities: Capabilities | None = None
    """What the model would be able to do, as far as its files say."""
    limit: Limit | None = None
    sampling: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Its defaults where a request says nothing, under the names of the request's fields."""

    @property
    def failures(self) -> tuple[FitCheck, ...]:
        """The checks that failed, in order."""
        return tuple(check for check in self.checks if check.verdict == Verdict.FAILED)


class FitCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/{id}/fit`; the field may be in the query instead."""

    node: NodeName | None = None
    """`None` asks every node that is up."""


class NodeFit(msgspec.Struct, frozen=True, kw_only=True):
    """What one node says of a load."""

    node: NodeName
    report: FitReport | None = None
    error: str | None = None
    """Why it says nothing."""


class FleetFit(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /admin/models/{id}/fit`."""

    model: ModelId
    """Aliases resolved; it need not be in the catalogue."""
    ok: bool
    """Whether it would load now on one of the nodes at least."""
    nodes: tuple[NodeFit, ...] = ()
    """By name."""
