"""The neuron's own series."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# A tiny model on a warm machine loads in a second, a large one from the hub in an hour.
_LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 3600)


class NeuronMetrics:
    """Series of one neuron, on the registry that it was given.

    Labels come from closed sets: `model` from the models that the node has, `route` from the
    inference paths, `outcome` of a request from `ok`, `invalid`, `error`, `cancelled` and
    `refused`, that of a load from `ok`, `failed`, `refused` and `cancelled`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.models = Gauge("neuron_models", "Models by status.", ["status"], registry=registry)
        self.requests = Counter(
            "neuron_requests_total",
            "Requests that ended, by how they did.",
            ["model", "route", "outcome"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "neuron_requests_in_flight", "Requests in the engine.", ["model"], registry=registry
        )
        self.loads = Counter(
            "neuron_loads_total", "Loads that ended.", ["outcome"], registry=registry
        )
        self.load_seconds = Histogram(
            "neuron_load_seconds",
            "Time that loads took until the engine was up.",
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )
        self.device_memory = Gauge(
            "neuron_device_memory_bytes",
            "Memory of a device: total, used and free as the driver says, held by the budget.",
            ["device", "kind"],
            registry=registry,
        )
        self.device_utilization = Gauge(
            "neuron_device_utilization_ratio",
            "Share of time in which a device was busy.",
            ["device"],
            registry=registry,
        )
