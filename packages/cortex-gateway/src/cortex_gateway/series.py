"""Counters and histograms that cost their caller an addition: the rest is done by a scrape.

The client library's own check and lock each addition, which costs more than all else about it.
These are added to by one thread, that of the loop; a scrape in another one copies before it reads.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import INF, floatToGoString

Labels = tuple[str, ...]
"""Values of the labels of one series, in the order of the family's names."""


class Counts(Collector):
    """The counters of one family: `counts.of[labels] += 1`.

    Args:
        registry: shows them.
        name: ends in `_total`.
        text: what is counted.
        labels: their names.
    """

    kind: type[CounterMetricFamily | GaugeMetricFamily] = CounterMetricFamily

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]
    ) -> None:
        self.of: defaultdict[Labels, float] = defaultdict(float)
        """What was counted, by labels."""
        self._head = (name, text, labels)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        name, text, labels = self._head
        family = self.kind(name, text, labels=labels)
        for values, value in tuple(self.of.items()):
            family.add_metric(values, value)
        yield family


class Levels(Counts):
    """Gauges that go up and down."""

    kind = GaugeMetricFamily


class Spread(Collector):
    """The histograms of one family.

    Args:
        registry: shows them.
        name: with its unit.
        text: what is measured.
        labels: their names.
        bounds: upper ends of the buckets, ascending; the last one, without an end, is added.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._head = (name, text, labels)
        self._bounds = tuple(map(float, bounds))
        self._shown = tuple(map(floatToGoString, (*self._bounds, INF)))
        self._rows: dict[Labels, list[float]] = {}
        """What fell into each bucket, and the sum at the end."""
        registry.register(self)

    def observe(self, labels: Labels, value: float) -> None:
        """Add a value to the series with these labels."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._shown) + 1)
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        name, text, labels = self._head
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, row in tuple(self._rows.items()):
            *counts, total = tuple(row)
            family.add_metric(values, self._buckets(counts), total)
        yield family

    def _buckets(self, counts: Sequence[float]) -> list[tuple[str, float]]:
        """Return how many values lie below each end; Prometheus counts upwards."""
        buckets, below = [], 0.0
        for shown, count in zip(self._shown, counts, strict=True):
            below += count
            buckets.append((shown, below))
        return buckets
