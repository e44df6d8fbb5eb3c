"""How room is made: the settings that decisions take, and what they reckon with."""

import enum
from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.ids import ModelId

DEFAULT_PRIORITY = 100
"""Residency priority of a model that says none."""

PINNED_PRIORITY = 1000
"""Residency priority of a pinned model that says none."""

HORIZON_S = 600.0
"""How far ahead `cost` looks for the next request of a model."""

LOAD_BYTES_PER_S = 1 << 30
"""What a load is guessed to read where none was measured."""

WAKE_BYTES_PER_S = 8 << 30
"""What a wake is guessed to copy from host memory where none was measured: less than a PCIe 4.0
link of 16 lanes gives."""


class Strategy(enum.StrEnum):
    """Which replica gives way first."""

    LRU = "lru"
    """The one whose latest request ended first."""
    PRIORITY = "priority"
    """The one of the lowest residency priority, among equals as `lru`."""
    COST = "cost"
    """The one that is expected to cost the fewest seconds: the time until it serves again, by the
    chance that it is asked for within `HORIZON_S`."""


class EvictionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How room is made."""

    strategy: Strategy = Strategy.LRU
    min_residency_s: float = 30.0
    """How long a replica stays at least, from the moment it was seen loaded."""
    drain_s: float = 300.0
    """How long the requests of a replica that gives way may go on before they are cut."""
    idle_unload_s: float | None = None
    """After how long without a request a replica is unloaded; `None` is never. A profile's own
    wins."""
    defrag_after_cycles: int = 0
    """After how many loads and unloads a node's engines are recycled; 0 is never."""


Rates = Mapping[ModelId, float]
"""Requests per second by model; no entry is none."""

NO_RATES: Rates = {}

DEFAULT_POLICY = EvictionPolicy()


def priority_of(profile: Profile) -> int:
    """Return a model's residency priority."""
    if profile.residency_priority is not None:
        return profile.residency_priority
    return PINNED_PRIORITY if profile.pinned_on else DEFAULT_PRIORITY
