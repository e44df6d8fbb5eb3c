"""Gauges that are read from the newest snapshot of the fleet when they are scraped."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import ModelId
from cortex_gateway.metrics import REPLICA_LABELS


class FleetCollector(Collector):
    """Gauges of nodes, devices, replicas and of who waits for a model.

    What is not in the snapshot any more has no series, and what a node that cannot be reached
    said last is not repeated as if it were true.

    Args:
        read_state: returns the newest snapshot.
        read_waiting: returns how many requests wait, by model.
        now: returns monotonic seconds.
    """

    def __init__(
        self,
        read_state: Callable[[], FleetState],
        read_waiting: Callable[[], Mapping[ModelId, int]],
        now: Callable[[], float],
    ) -> None:
        self._read_state = read_state
        self._read_waiting = read_waiting
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each kind of gauge."""
        state = self._read_state()
        yield from _nodes(state)
        yield from _devices(state)
        ejected = GaugeMetricFamily(
            "cortex_breaker_open",
            "1 while a replica gets no requests because too many failed there in a row.",
            labels=REPLICA_LABELS,
        )
        now = self._now()
        for replica, breaker in state.breakers.items():
            ejected.add_metric((replica.model, replica.node), float(breaker.is_open(now)))
        waiting = GaugeMetricFamily(
            "cortex_requests_waiting",
            "Requests that wait for a load, a place or a node.",
            labels=("model",),
        )
        for model, count in self._read_waiting().items():
            waiting.add_metric((model,), float(count))
        yield from (ejected, waiting)


def _nodes(state: FleetState) -> Iterator[Metric]:
    up = GaugeMetricFamily("cortex_node_up", "1 when the node answers, else 0.", labels=("node",))
    states = GaugeMetricFamily(
        "cortex_replica_state",
        "1 for the state in which a replica is; others have no series.",
        labels=(*REPLICA_LABELS, "state"),
    )
    for node in state.nodes.values():
        up.add_metric((node.name,), float(node.is_reachable))
        for model, replica in node.replicas.items():
            status = replica.status.value if node.is_reachable else "unknown"
            states.add_metric((model, node.name, status), 1.0)
    yield from (up, states)


def _devices(state: FleetState) -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        "cortex_device_memory_bytes",
        "Device memory: total, used and free, as the driver says.",
        labels=("node", "device", "kind"),
    )
    busy = GaugeMetricFamily(
        "cortex_device_utilization_ratio",
        "Share of time in which the device was busy.",
        labels=("node", "device"),
    )
    for node in state.nodes.values():
        if node.is_reachable:
            _add_devices(node, memory, busy)
    yield from (memory, busy)


def _add_devices(node: NodeState, memory: GaugeMetricFamily, busy: GaugeMetricFamily) -> None:
    if node.facts is not None:
        for device in node.facts.devices:
            labels = (node.name, str(device.index), "total")
            memory.add_metric(labels, float(device.vram_total_bytes))
    for index, reading in node.readings.items():
        for kind, size in (("used", reading.vram_used_bytes), ("free", reading.vram_free_bytes)):
            if size is not None:
                memory.add_metric((node.name, str(index), kind), float(size))
        if reading.utilization_ratio is not None:
            busy.add_metric((node.name, str(index)), reading.utilization_ratio)
