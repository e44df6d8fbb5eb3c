"""The gateway's series. All of them live on the registry that the process was given."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from cortex_gateway.series import Counts, Levels, Spread

UNKNOWN = "unknown"
"""Label of a model or node that is in no catalogue and no fleet, so that callers add no series."""

OK = "ok"
"""Outcome of a request that was answered as it should be."""

CLIENT_GONE = "client_gone"
"""Outcome of a request whose caller hung up."""

# From a refusal to a long agent turn.
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
# From a cached prompt on a fast card to a cold start.
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# From speculative decoding to a CPU engine.
_GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
# The same, the other way round.
_RATE_BUCKETS = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
# From a model that was there to one that is downloaded first.
_LOAD_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)

REPLICA_LABELS = ("model", "node")
"""Of whatever counts for a model on a node."""


class _Counters:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: Sequence[str] = REPLICA_LABELS) -> Counts:
            return Counts(registry, name, text, labels)

        self.requests = counter(
            "cortex_requests_total",
            "Requests, counted when they end, whatever becomes of them.",
            (*REPLICA_LABELS, "outcome"),
        )
        self.errors = counter(
            "cortex_request_errors_total", "Requests that ended in an error answer or event."
        )
        self.cold_starts = counter(
            "cortex_cold_starts_total", "Requests that waited for their model to be loaded."
        )
        self.attempts = counter(
            "cortex_upstream_attempts_total",
            "Attempts at a node: `ok`, or how they failed.",
            ("outcome",),
        )
        self.rejections = counter(
            "cortex_rejections_total",
            "Requests that were refused before they reached a node, by error code.",
            ("reason",),
        )
        self.prompt_tokens = counter(
            "cortex_prompt_tokens_total", "Prompt tokens, as the engines counted them."
        )
        self.cached_tokens = counter(
            "cortex_cached_prompt_tokens_total", "Prompt tokens that came from a prefix cache."
        )
        self.completion_tokens = counter(
            "cortex_completion_tokens_total", "Completion tokens, as the engines counted them."
        )


class _Histograms:
    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, bounds: Sequence[float]) -> Spread:
            return Spread(registry, name, text, REPLICA_LABELS, bounds)

        self.duration = histogram(
            "cortex_request_duration_seconds",
            "From the arrival of a request to the end of its answer.",
            _DURATION_BUCKETS,
        )
        self.first_token = histogram(
            "cortex_time_to_first_token_seconds",
            "From the arrival of a streaming request to its first token.",
            _FIRST_TOKEN_BUCKETS,
        )
        self.inter_token = histogram(
            "cortex_inter_token_seconds", "Mean gap between the tokens of a stream.", _GAP_BUCKETS
        )
        self.rate = histogram(
            "cortex_tokens_per_second",
            "Completion tokens of a request per second of generation.",
            _RATE_BUCKETS,
        )
        self.queue = histogram(
            "cortex_queue_seconds",
            "From the arrival of a request to its dispatch to a node, loads included.",
            (0.001, 0.01, *_LOAD_BUCKETS),
        )
        self.load = histogram(
            "cortex_load_seconds",
            "From a load command to the answer that the model serves.",
            _LOAD_BUCKETS,
        )


class GatewayMetrics:
    """The counters and histograms; the rooms above write to them through its methods."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = _Counters(registry)
        self._evictions = Counts(
            registry,
            "cortex_evictions_total",
            "Replicas that were put to sleep or unloaded to make room.",
            REPLICA_LABELS,
        )
        self._decisions = Counts(
            registry,
            "cortex_decisions_total",
            "Decisions about requests and models; `/admin/decisions` has the latest.",
            ("kind",),
        )
        self._trace_lost = Counter(
            "cortex_trace_lines_lost_total",
            "Lines of `trace.record` that could not be written, or not as fast as they came.",
            registry=registry,
        )
        self._histograms = _Histograms(registry)
        self._in_flight = Levels(
            registry,
            "cortex_requests_in_flight",
            "Requests for a known model that have arrived and not ended.",
            ("model",),
        )

    def began(self, model: str) -> None:
        """Count a request whose model is known as in flight; `ended` follows without fail."""
        self._in_flight.of[(model,)] += 1

    def attempted(self, outcome: str) -> None:
        """Count one attempt at a node: `ok` or a `Failure`'s value."""
        self._counters.attempts.of[(outcome,)] += 1

    def trace_lost(self, lines: int) -> None:
        """Count lines of the trace that were lost."""
        self._trace_lost.inc(lines)

    def loaded(self, *, model: str, node: str, load_s: float) -> None:
        """Count a load that this gateway asked for and that succeeded."""
        self._histograms.load.observe((model, node), load_s)

    def decided(self, kind: str) -> None:
        """Count a decision."""
        self._decisions.of[(kind,)] += 1

    def evicted(self, *, model: str, node: str) -> None:
        """Count a replica that gave way to another model."""
        self._evictions.of[model, node] += 1

    def ended(
        self,
        *,
        model: str,
        node: str,
        outcome: str,
        has_begun: bool,
        is_cold_start: bool,
        duration_s: float,
        queue_s: float,
        load_s: float,
        ttft_s: float | None,
        inter_token_s: float | None,
        prompt_tokens: int | None,
        cached_prompt_tokens: int | None,
        completion_tokens: int | None,
    ) -> None:
        """Count one request at its end; for the arguments see `RequestMetrics.ended`."""
        if has_begun:
            self._in_flight.of[(model,)] -= 1
        replica, counters = (model, node), self._counters
        self._count(replica, outcome, is_cold_start=is_cold_start)
        if prompt_tokens is not None:
            counters.prompt_tokens.of[replica] += prompt_tokens
        if cached_prompt_tokens is not None:
            counters.cached_tokens.of[replica] += cached_prompt_tokens
        if completion_tokens is not None:
            counters.completion_tokens.of[replica] += completion_tokens
        generation_s = duration_s - (queue_s + load_s if ttft_s is None else ttft_s)
        histograms = self._histograms
        histograms.duration.observe(replica, duration_s)
        if node != UNKNOWN:
            histograms.queue.observe(replica, queue_s + load_s)
        if ttft_s is not None:
            histograms.first_token.observe(replica, ttft_s)
        if inter_token_s is not None:
            histograms.inter_token.observe(replica, inter_token_s)
        if completion_tokens and generation_s > 0:
            histograms.rate.observe(replica, completion_tokens / generation_s)

    def _count(self, replica: tuple[str, str], outcome: str, *, is_cold_start: bool) -> None:
        counters = self._counters
        counters.requests.of[(*replica, outcome)] += 1
        if outcome not in (OK, CLIENT_GONE):
            counters.errors.of[replica] += 1
            if replica[1] == UNKNOWN:
                counters.rejections.of[(outcome,)] += 1
        if is_cold_start:
            counters.cold_starts.of[replica] += 1
