"""By how much a gateway's event loop was late, from what it shows under `/metrics`."""

import math
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Mapping

import msgspec

# Of one process or of several, whose looks are added.
_BUCKET = re.compile(
    r'^cortex_event_loop_lag_seconds_bucket\{(?:[^}]*,)?le="([^"]+)"[^}]*\} (\S+)', re.MULTILINE
)

Buckets = Mapping[float, float]
"""How often the loop was late by at most so many seconds, since it was started."""


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How late a loop was within a load: upper edges of a histogram's buckets."""

    looks: int
    p50_s: float | None
    """`None` where it is beyond the last edge."""
    p99_s: float | None


def metrics_url(endpoint: str, given: str | None) -> str | None:
    """Return where a gateway shows its metrics: as given, else at the port after its own.

    `None` where its URL has no port.
    """
    if given is not None:
        parts = urllib.parse.urlsplit(given)
        return given if parts.path.strip("/") else f"{given.rstrip('/')}/metrics"
    try:
        parts = urllib.parse.urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return None
    if port is None or port == 65535 or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{port + 1}/metrics"


def read_buckets(page: str) -> dict[float, float] | None:
    """Return the buckets of a page in Prometheus' text format; `None` where it has none."""
    found: defaultdict[float, float] = defaultdict(float)
    for edge, count in _BUCKET.findall(page):
        try:
            found[float(edge)] += float(count)
        except ValueError:
            return None
    return dict(found) or None


def with_looks(sum_so_far: Buckets, before: Buckets, after: Buckets) -> dict[float, float] | None:
    """Return looks with those between two pages added; `None` if the gateway was restarted."""
    news = {edge: count - before.get(edge, 0.0) for edge, count in after.items()}
    if any(count < 0 for count in news.values()):
        return None
    return {edge: sum_so_far.get(edge, 0.0) + count for edge, count in news.items()}


def lag_of(looks: Buckets) -> Lag | None:
    """Return how late the loop was; `None` where nobody looked."""
    count = max(looks.values(), default=0.0)
    if not count:
        return None
    return Lag(looks=round(count), p50_s=_edge(looks, 0.5), p99_s=_edge(looks, 0.99))


def _edge(looks: Buckets, share: float) -> float | None:
    wanted = share * max(looks.values())
    edge = min(edge for edge, count in looks.items() if count >= wanted)
    return edge if math.isfinite(edge) else None
