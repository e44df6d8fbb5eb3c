"""The neuron's own series."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from neuron.device_metrics import DeviceMetrics

# A tiny model on a warm machine loads in a second, a large one from the hub in an hour.
_LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 3600)

# Nearly all wait not at all; a long wait is bounded by `max_wait_s`.
_QUEUE_BUCKETS = (0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class NeuronMetrics:
    """Series of one neuron, on the registry that it was given.

    Labels come from closed sets: `model` from the models that the node has, `route` from the
    inference paths, `outcome` of a request from `ok`, `invalid`, `error`, `cancelled` and
    `refused`, that of a load and a wake from `ok`, `failed`, `refused` and `cancelled`, that of
    a sleep from `ok`, `failed` and `cancelled`, that of a recovery from `ok`, `failed` and
    `given_up`, that of a download from `ready`, `failed` and `cancelled`; `kind` is one of
    `lifecycle.recovery.FailureKind`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._add_requests(registry)
        self._add_lives(registry)
        self._add_deaths(registry)
        self._add_memory(registry)
        self._add_weights(registry)
        self.devices = DeviceMetrics(registry)

    def _add_requests(self, registry: CollectorRegistry) -> None:
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
        self.step_age = Gauge(
            "neuron_engine_step_age_seconds",
            "For how long an engine has made no step although it has work.",
            ["model"],
            registry=registry,
        )
        self._add_admission(registry)

    def _add_admission(self, registry: CollectorRegistry) -> None:
        self.queued = Gauge(
            "neuron_queued",
            "Requests that wait for a place with the engine, or inside it.",
            ["model"],
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "neuron_queue_seconds",
            "Time that requests waited for their place with the engine.",
            ["model"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.refusals = Counter(
            "neuron_refusals_total",
            "Requests that were refused before an engine saw them, by the code of the error.",
            ["reason"],
            registry=registry,
        )

    def _add_lives(self, registry: CollectorRegistry) -> None:
        self.loads = Counter(
            "neuron_loads_total", "Loads that ended.", ["outcome"], registry=registry
        )
        self.load_seconds = Histogram(
            "neuron_load_seconds",
            "Time that loads took until the engine was up.",
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )
        self.recycles = Counter(
            "neuron_recycles_total", "Times that engines were replaced.", registry=registry
        )
        self.sleeps = Counter(
            "neuron_sleeps_total", "Sleeps that began, or did not.", ["outcome"], registry=registry
        )
        self.wakes = Counter(
            "neuron_wakes_total", "Wakes that ended.", ["outcome"], registry=registry
        )
        self.wake_seconds = Histogram(
            "neuron_wake_seconds",
            "Time that wakes took until the model served.",
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )

    def _add_deaths(self, registry: CollectorRegistry) -> None:
        self.deaths = Counter(
            "neuron_engine_deaths_total",
            "Engines that ended by themselves or had to be given up, by what is known of it.",
            ["kind"],
            registry=registry,
        )
        self.recoveries = Counter(
            "neuron_recoveries_total",
            "Attempts to bring back an engine that had died.",
            ["outcome"],
            registry=registry,
        )
        self.recovery_seconds = Histogram(
            "neuron_recovery_seconds",
            "Time from the death of an engine until its model served again.",
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )

    def _add_weights(self, registry: CollectorRegistry) -> None:
        self.downloads = Counter(
            "neuron_downloads_total",
            "Downloads of models that ended, by how they did.",
            ["outcome"],
            registry=registry,
        )
        self.weights_removed = Counter(
            "neuron_weights_removed_total",
            "Models that were removed from the disk.",
            registry=registry,
        )

    def _add_memory(self, registry: CollectorRegistry) -> None:
        self.sleep_memory = Gauge(
            "neuron_sleep_memory_bytes",
            "Host memory for models that sleep: the budget, and what they hold of it.",
            ["kind"],
            registry=registry,
        )
        self.state_write_failures = Counter(
            "neuron_state_write_failures_total",
            "Times that the state file could not be written.",
            registry=registry,
        )
        self.leaked = Gauge(
            "neuron_leaked_bytes",
            "Memory of a device that closed engines did not give back.",
            ["device"],
            registry=registry,
        )
