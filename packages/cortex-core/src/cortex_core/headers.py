"""Which headers cross the gateway, in either direction."""

import functools
from collections.abc import Iterable

# RFC 9110 section 7.6.1, plus the two names that RFC 2616 listed and old software still sends.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

CALLER_HEADER = "x-cortex-caller"
"""Tells a neuron whose request a gateway sends; a caller's own never gets past the gateway."""

REQUEST_ALLOWED = frozenset(
    {
        "accept",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-client-request-id",
        "x-request-id",
        "x-cortex-priority",
        "x-cortex-session",
    }
)
"""Request headers that a neuron gets to see; everything else stays at the gateway."""

_RESPONSE_DROPPED = HOP_BY_HOP | {
    # The gateway's own server writes these for its own connection.
    "content-length",
    "date",
    "server",
    "alt-svc",
    # The gateway names the request itself.
    "x-request-id",
    "request-id",
    "set-cookie",
    # What is known of the operator's account with a hosted service is nobody else's business.
    "anthropic-organization-id",
    "openai-organization",
    "openai-project",
}
_DROPPED_PREFIXES = (
    # Of the operator's account too: one caller's share of it cannot be told from them.
    "anthropic-ratelimit-",
    "x-ratelimit-",
    # The gateway says these itself.
    "x-cortex-",
)


def request_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the caller's headers that go upstream, in order, names in lower case."""
    pairs = [(name.lower(), value) for name, value in headers]
    return [pair for pair in pairs if pair[0] in REQUEST_ALLOWED]


def response_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the upstream's headers that go to the caller, in order, names in lower case.

    Names that the upstream lists in `Connection` are hop-by-hop too (RFC 9110 section 7.6.1).
    """
    kept: list[tuple[str, str]] = []
    named: set[str] = set()
    for name, value in headers:
        lowered, is_kept = _seen(name)
        if is_kept:
            kept.append((lowered, value))
        elif lowered == "connection":
            named.update([token.strip().lower() for token in value.split(",")])
    return [pair for pair in kept if pair[0] not in named] if named else kept


@functools.lru_cache(maxsize=512)
def _seen(name: str) -> tuple[str, bool]:
    """Return the name of an answer's header in lower case, and whether it goes to the caller."""
    lowered = name.lower()
    is_dropped = lowered in _RESPONSE_DROPPED or lowered.startswith(_DROPPED_PREFIXES)
    return lowered, not is_dropped


def combined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by name, those that are repeated as one list (RFC 9110 section 5.2)."""
    values: dict[str, str] = {}
    for name, value in headers:
        values[name] = f"{values[name]}, {value}" if name in values else value
    return values
