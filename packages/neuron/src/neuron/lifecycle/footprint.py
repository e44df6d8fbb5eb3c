"""How much device memory a load takes, as its files and a few rules of thumb say; pure."""

import msgspec

from cortex_core.harness import ModelSpec
from cortex_core.knowledge import ModelFacts

OVERHEAD_BYTES = 1536 << 20
"""Activations, driver context and graphs on each device; an estimate, corrected by what loads
measure."""

DEFAULT_CONTEXT_TOKENS = 8192
"""KV cache that is reckoned with when nobody says how long the context shall be."""


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Device memory of one load, over all its devices on one node, in bytes."""

    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


def estimate(facts: ModelFacts, spec: ModelSpec) -> Footprint | None:
    """Return what a load takes of this node; `None` when its weights' size is not known."""
    if facts.weights_bytes is None:
        return None
    devices, tensor_parallel = spec.ranks, spec.tensor_parallel_on(len(spec.devices))
    if facts.cache_bytes is not None:
        kv_bytes = facts.cache_bytes * devices
    elif facts.kv is not None:
        # Stages of a pipeline have their own layers: together they hold all of them once.
        everywhere = facts.kv.device_bytes(reckoned_tokens(facts), tensor_parallel)
        kv_bytes = -(-everywhere * tensor_parallel // spec.nodes)
    else:
        kv_bytes = 0
    return Footprint(
        weights_bytes=-(-facts.weights_bytes // spec.nodes),
        kv_bytes=kv_bytes,
        overhead_bytes=OVERHEAD_BYTES * devices,
    )


def reckoned_tokens(facts: ModelFacts) -> int:
    """Return the context that an estimate has room for."""
    if facts.context is not None:
        return facts.context
    return min(DEFAULT_CONTEXT_TOKENS, facts.longest or DEFAULT_CONTEXT_TOKENS)
