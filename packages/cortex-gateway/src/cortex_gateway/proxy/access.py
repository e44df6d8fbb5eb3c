"""How each node and upstream is spoken to, and under which names an upstream has models."""

from collections.abc import Mapping, Sequence

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.ids import ModelId, NodeName

_ONWARD = frozenset({"accept", "content-type", "traceparent", "tracestate"})
"""What a stranger's service gets to see of a caller's head."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How one upstream is spoken to. Its key is in `headers`, so it is never logged or shown."""

    dialect: Dialect
    is_neuron: bool = False
    """Whether it is one of ours."""
    headers: Sequence[tuple[str, str]] = ()
    """Sent with every request."""
    defaults: Sequence[tuple[str, str]] = ()
    """Sent where the request's dialect does not say otherwise."""
    models: Mapping[ModelId, str] = msgspec.field(default_factory=dict)
    """What it calls the models that callers know by another name."""


NEURON = Access(dialect=Dialect.OPENAI, is_neuron=True)
"""A node of ours that asks for no token."""

Accesses = Mapping[NodeName, Access]
"""By name; neurons that ask for no token have no entry."""


def headers_for(
    access: Access, onward: Sequence[tuple[str, str]], more: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the headers of a request to an upstream.

    Args:
        access: of the upstream.
        onward: of the caller, as far as a neuron may see them.
        more: what the request's dialect adds; the upstream's own headers win.
    """
    if access.is_neuron:
        return [*onward, *more, *access.headers]
    kept = [pair for pair in onward if pair[0] in _ONWARD]
    known = dict((*access.defaults, *kept, *more, *access.headers))
    return list(known.items())
