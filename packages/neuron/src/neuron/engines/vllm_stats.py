"""How busy an engine is, from what vLLM tells its stat loggers, and its Prometheus series."""

from collections import deque
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortex_core.harness import EngineLoad

_WINDOW_S = 5.0
"""Time over which rates are taken: long enough for a handful of slow prefills."""


class LoadWindow:
    """Running and waiting requests and the token rates of the last seconds."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting = 0
        self._kv_cache_usage: float | None = None
        self.steps = 0
        """Steps of the engine so far."""
        self._steps: deque[tuple[float, int, int]] = deque()
        # Sums over `_steps`, which may be thousands: every request that comes reads the load.
        self._prompt_tokens = self._generated_tokens = 0

    def set_scheduler(self, running: int, waiting: int, kv_cache_usage: float) -> None:
        """Take over the scheduler's own counts of one step."""
        self.steps += 1
        self._running = running
        self._waiting = waiting
        self._kv_cache_usage = kv_cache_usage

    def add_tokens(self, now: float, prompt_tokens: int, generated_tokens: int) -> None:
        """Count the tokens of one step; `now` never goes back."""
        self._steps.append((now, prompt_tokens, generated_tokens))
        self._prompt_tokens += prompt_tokens
        self._generated_tokens += generated_tokens
        self._forget(now)

    def read(self, now: float, unfinished: int = 0) -> EngineLoad:
        """Return the load at `now`; rates are 0 when nothing ran in the last seconds.

        Args:
            now: as of `add_tokens`.
            unfinished: requests that the engine was given and has not finished.
        """
        self._forget(now)
        return EngineLoad(
            running=self._running,
            waiting=self._waiting,
            kv_cache_usage=self._kv_cache_usage,
            prefill_tok_per_s=self._prompt_tokens / _WINDOW_S,
            decode_tok_per_s=self._generated_tokens / _WINDOW_S,
            unfinished=unfinished,
            steps=self.steps,
        )

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0][0] < now - _WINDOW_S:
            _, prompt_tokens, generated_tokens = self._steps.popleft()
            self._prompt_tokens -= prompt_tokens
            self._generated_tokens -= generated_tokens


def render_metrics(registries: Mapping[str, CollectorRegistry]) -> bytes:
    """Return the series of all engines as one text, with the model's id as label `model`.

    Args:
        registries: one per model, n >= 0. Families that several have are written once.
    """
    if not registries:
        return b""
    merged = CollectorRegistry()
    merged.register(_Families(_merge(registries)))
    return generate_latest(merged)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _merge(registries: Mapping[str, CollectorRegistry]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for model, registry in registries.items():
        for metric in registry.collect():
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
            )
            for sample in metric.samples:
                labels = {**sample.labels, "model": model}
                family.samples.append(sample._replace(labels=labels))
    return families.values()
