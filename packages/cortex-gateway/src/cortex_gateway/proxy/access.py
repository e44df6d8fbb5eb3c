"""Upstreams beside the neurons: how each is spoken to, and under which names it has models."""

from collections.abc import Mapping, Sequence

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.ids import ModelId, NodeName

_ONWARD = frozenset({"accept", "content-type", "traceparent", "tracestate"})
"""What a stranger's service gets to see of a caller's head."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How one upstream is spoken to. Its key is in `headers`, so it is never logged or shown."""

    dialect: Dialect
    headers: Sequence[tuple[str, str]] = ()
    """Sent with every request."""
    defaults: Sequence[tuple[str, str]] = ()
    """Sent where the request's dialect does not say otherwise."""
    models: Mapping[ModelId, str] = msgspec.field(default_factory=dict)
    """What it calls the models that callers know by another name."""


NEURON = Access(dialect=Dialect.OPENAI)
"""A node of ours."""

Accesses = Mapping[NodeName, Access]
"""By name; nodes that are neurons have no entry."""


def headers_for(
    access: Access, onward: Sequence[tuple[str, str]], more: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the headers of a request to an upstream.

    Args:
        access: of the upstream.
        onward: of the caller, as far as a neuron may see them.
        more: what the request's dialect adds; the upstream's own headers win.
    """
    if access is NEURON:
        return [*onward, *more]
    kept = [pair for pair in onward if pair[0] in _ONWARD]
    known = dict((*access.defaults, *kept, *more, *access.headers))
    return list(known.items())
