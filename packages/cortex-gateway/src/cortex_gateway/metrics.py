"""The gateway's series. All of them live on the registry that the process was given."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import ModelId

UNKNOWN_MODEL = "unknown"
"""Label of a model that is in no catalogue and on no node, so that callers cannot add series."""

NO_NODE = "none"
"""Label of a request that reached no node."""

# From a refusal to a long agent turn.
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
# From a cached prompt on a fast card to a cold start.
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# From speculative decoding to a CPU engine.
_GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
# From a CPU engine to speculative decoding.
_RATE_BUCKETS = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
# From a model that was there to one that is downloaded first.
_LOAD_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)

_REPLICA = ("model", "node")


class _RequestCounters:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "cortex_requests_total",
            "Requests, counted when they end, whatever becomes of them.",
            (*_REPLICA, "outcome"),
            registry=registry,
        )
        self.request_errors = Counter(
            "cortex_request_errors_total",
            "Requests that ended in an error answer or an error event.",
            _REPLICA,
            registry=registry,
        )
        self.cold_starts = Counter(
            "cortex_cold_starts_total",
            "Loads that this gateway asked for because requests waited, and that succeeded.",
            _REPLICA,
            registry=registry,
        )
        self.evictions = Counter(
            "cortex_evictions_total",
            "Replicas that were unloaded to make room.",
            _REPLICA,
            registry=registry,
        )
        self.upstream_attempts = Counter(
            "cortex_upstream_attempts_total",
            "Attempts at a replica: `answered`, or how they failed.",
            (*_REPLICA, "outcome"),
            registry=registry,
        )
        self.rejections = Counter(
            "cortex_rejections_total",
            "Requests that the gateway refused itself, by error code.",
            ("model", "reason"),
            registry=registry,
        )


class _TokenCounters:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.prompt_tokens = Counter(
            "cortex_prompt_tokens_total",
            "Prompt tokens, as the engines counted them.",
            _REPLICA,
            registry=registry,
        )
        self.completion_tokens = Counter(
            "cortex_completion_tokens_total",
            "Completion tokens, as the engines counted them.",
            _REPLICA,
            registry=registry,
        )
        self.cached_prompt_tokens = Counter(
            "cortex_cached_prompt_tokens_total",
            "Prompt tokens that an engine had in its prefix cache.",
            _REPLICA,
            registry=registry,
        )


class _Latencies:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.request_duration_s = Histogram(
            "cortex_request_duration_seconds",
            "From the arrival of a request to the end of its answer.",
            _REPLICA,
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self.time_to_first_token_s = Histogram(
            "cortex_time_to_first_token_seconds",
            "From the arrival of a streaming request to its first token.",
            _REPLICA,
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.inter_token_s = Histogram(
            "cortex_inter_token_seconds",
            "Mean gap between the tokens of a stream after the first.",
            _REPLICA,
            buckets=_GAP_BUCKETS,
            registry=registry,
        )
        self.tokens_per_s = Histogram(
            "cortex_tokens_per_second",
            "Completion tokens of a request per second of generation.",
            _REPLICA,
            buckets=_RATE_BUCKETS,
            registry=registry,
        )
        self.queue_s = Histogram(
            "cortex_queue_seconds",
            "Time that a request was held for want of a replica; requests that were not, at 0.",
            _REPLICA,
            buckets=(0.001, *_LOAD_BUCKETS),
            registry=registry,
        )
        self.load_s = Histogram(
            "cortex_load_seconds",
            "From a load command to the answer that the model serves.",
            _REPLICA,
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )


class GatewayMetrics(_RequestCounters, _TokenCounters, _Latencies):
    """Counters, gauges and histograms that the gateway's rooms write to.

    `model` is a name from `model_label`, `node` a node's name or `NO_NODE`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        _RequestCounters.__init__(self, registry)
        _TokenCounters.__init__(self, registry)
        _Latencies.__init__(self, registry)
        self.in_flight = Gauge(
            "cortex_requests_in_flight",
            "Requests that were sent to a replica and have not ended.",
            _REPLICA,
            registry=registry,
        )


def model_label(state: FleetState, catalogue: Catalogue, model: str) -> str:
    """Return `model` when the catalogue or a node knows it, else `UNKNOWN_MODEL`."""
    known = ModelId(model)
    if known in catalogue.profiles or any(True for _ in state.replicas_of(known)):
        return model
    return UNKNOWN_MODEL


class FleetCollector(Collector):
    """Gauges of nodes, devices and replicas, read from the snapshot when they are scraped.

    What is not in the snapshot any more has no series, and what a node that cannot be reached
    said last is not repeated as if it were true.
    """

    def __init__(self, read_state: Callable[[], FleetState]) -> None:
        self._read_state = read_state

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each kind of gauge."""
        up = GaugeMetricFamily(
            "cortex_node_up", "1 when the node answers, else 0.", labels=("node",)
        )
        states = GaugeMetricFamily(
            "cortex_replica_state",
            "1 for the state in which a replica is; others have no series.",
            labels=(*_REPLICA, "state"),
        )
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
        for node in self._read_state().nodes.values():
            up.add_metric((node.name,), float(node.is_reachable))
            for model, replica in node.replicas.items():
                state = replica.status.value if node.is_reachable else "unknown"
                states.add_metric((model, node.name, state), 1.0)
            if node.is_reachable:
                _add_devices(node, memory, busy)
        yield from (up, states, memory, busy)


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
