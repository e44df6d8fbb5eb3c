"""Series of several processes as those of one: counted together, and never less than before."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

_OF_ONE = frozenset({"process_start_time_seconds", "process_max_fds"})
"""Nothing that could be added up."""

_GROWING = frozenset({"counter", "histogram"})


class Point(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All series of one name."""

    name: str
    kind: str
    """As Prometheus calls it: `counter`, `gauge` or `histogram`."""
    text: str
    points: tuple[Point, ...]


def families_of(registry: CollectorRegistry) -> tuple[Family, ...]:
    """Return what a registry has now, but for what only means something of one process."""
    return tuple(_family(metric) for metric in registry.collect() if metric.name not in _OF_ONE)


def total(parts: Iterable[Iterable[Family]]) -> tuple[Family, ...]:
    """Add up series by name and labels, in the order in which they come first."""
    heads: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for part in parts:
        for family in part:
            heads.setdefault(family.name, family)
            known = sums.setdefault(family.name, {})
            for point in family.points:
                key = (point.name, point.labels)
                known[key] = known.get(key, 0.0) + point.value
    return tuple(
        msgspec.structs.replace(
            heads[name],
            points=tuple(
                Point(name=key[0], labels=key[1], value=value) for key, value in known.items()
            ),
        )
        for name, known in sums.items()
    )


def lasting(families: Iterable[Family]) -> tuple[Family, ...]:
    """Return what is left of a process that has ended: what it has counted."""
    return tuple(family for family in families if family.kind in _GROWING)


class Summed(CollectorRegistry):
    """A registry with what other processes have counted added to its own.

    Args:
        own: of this process.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        super().__init__()
        self._own = own
        self.others: Mapping[str, tuple[Family, ...]] = {}
        """Of each process, by any name; replaced whole, for a scrape runs beside the loop."""

    def collect(self) -> Iterator[Metric]:
        """Yield every family once."""
        own = [_family(metric) for metric in self._own.collect()]
        for family in total([own, *self.others.values()]):
            metric = Metric(family.name, family.text, family.kind)
            metric.samples = [Sample(p.name, dict(p.labels), p.value) for p in family.points]
            yield metric


def _family(metric: Metric) -> Family:
    return Family(
        name=metric.name,
        kind=metric.type,
        text=metric.documentation,
        points=tuple(
            Point(name=one.name, labels=tuple(one.labels.items()), value=float(one.value))
            for one in metric.samples
        ),
    )
