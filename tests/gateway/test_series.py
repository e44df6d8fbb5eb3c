"""Counters and histograms that are added up between scrapes, beside the client library's own."""

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cortex_gateway.series import Counts, Levels, Spread

LABELS = ("model", "node")
BOUNDS = (0.1, 1, 2.5)
values = st.floats(min_value=0, max_value=10, allow_nan=False)
names = st.tuples(st.sampled_from(["a", 'b"\n\\']), st.sampled_from(["x", "y"]))


@given(st.lists(st.tuples(names, values)))
def test_scrape_is_that_of_the_client_library(seen: list[tuple[tuple[str, str], float]]) -> None:
    """Ours: what is shown is the library's text, to the byte."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts(ours, "c_total", "text", LABELS)
    levels = Levels(ours, "g", "text", LABELS)
    spread = Spread(ours, "h_seconds", "text", LABELS, BOUNDS)
    counter = Counter("c_total", "text", LABELS, registry=theirs)
    gauge = Gauge("g", "text", LABELS, registry=theirs)
    histogram = Histogram("h_seconds", "text", LABELS, buckets=BOUNDS, registry=theirs)

    for labels, value in seen:
        counts.of[labels] += value
        levels.of[labels] -= value
        spread.observe(labels, value)
        counter.labels(*labels).inc(value)
        gauge.labels(*labels).dec(value)
        histogram.labels(*labels).observe(value)

    assert generate_latest(ours) == without_created(generate_latest(theirs))


def without_created(text: bytes) -> bytes:
    """Leave out when each series began, which gateways do not show."""
    return b"".join(line for line in text.splitlines(True) if b"_created" not in line)
