"""The neuron's series with those of its engines, as one text."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from cortex_core.harness import Harness

# Source: Prometheus text format 0.0.4, which every scraper takes.
_TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_OPENMETRICS = "application/openmetrics-text"


def render_series(
    registry: CollectorRegistry, harnesses: Iterable[Harness], accept: str
) -> tuple[bytes, str]:
    """Return all series, our own first, and their content type; takes milliseconds.

    Args:
        registry: our own.
        harnesses: whose series are appended.
        accept: what the scraper accepts; OpenMetrics if that is there, else the text format.
    """
    texts = [harness.metrics() for harness in harnesses]
    _, content_type = choose_encoder(accept)
    if not content_type.startswith(_OPENMETRICS):
        return join_series((generate_latest(registry), *texts)), _TEXT_TYPE
    merged = CollectorRegistry()
    merged.register(_Families([*registry.collect(), *_families_of(join_series(texts))]))
    # The encoder that was chosen would write `vllm:` as `vllm_`, and that in samples alone; the
    # colon is allowed in names (OpenMetrics 1.0, "ABNF").
    text: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]  # untyped here
        merged, escaping=openmetrics.ALLOWUTF8
    )
    return text, openmetrics.CONTENT_TYPE_LATEST


def join_series(texts: Iterable[bytes]) -> bytes:
    """Join texts of series; a family that an earlier text has is left out of later ones."""
    seen: set[bytes] = set()
    kept: list[bytes] = []
    for text in texts:
        here: set[bytes] = set()
        is_kept = True
        for line in text.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                family = line.split(b" ", 3)[2]
                is_kept = family not in seen
                here.add(family)
            if is_kept and line:
                kept.append(line)
        seen |= here
    return b"".join(line + b"\n" for line in kept)


class _Families(Collector):
    """Families that are there already; the first of several with one name is kept."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families: dict[str, Metric] = {}
        for family in families:
            self._families.setdefault(family.name, family)

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


def _families_of(text: bytes) -> Iterable[Metric]:
    for family in text_string_to_metric_families(text.decode()):
        # In the text format, when a counter began is a gauge of its own; in OpenMetrics its name
        # belongs to the counter.
        if not family.name.endswith("_created"):
            yield family
