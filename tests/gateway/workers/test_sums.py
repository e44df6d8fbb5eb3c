"""Series of several processes add up to those of one that had done everything."""

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.workers.sums import Summed, families_of, lasting, total

MODELS = st.sampled_from(["a", "b"])
ENDS = st.lists(
    st.tuples(MODELS, st.sampled_from(["ok", "client_gone"]), st.integers(0, 64)), max_size=8
)


def count(registry: CollectorRegistry, ends: list[tuple[str, str, int]]) -> None:
    metrics = GatewayMetrics(registry)
    for model, outcome, tokens in ends:
        metrics.began(model)
        metrics.ended(
            model=model,
            node="left",
            outcome=outcome,
            has_begun=True,
            is_cold_start=False,
            duration_s=tokens / 8,
            queue_s=0.0,
            load_s=0.0,
            ttft_s=None,
            inter_token_s=None,
            prompt_tokens=tokens,
            cached_prompt_tokens=None,
            completion_tokens=tokens,
        )


def shown(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Give what a scraper sees, without the moments at which series were made."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(parts=st.lists(ENDS, min_size=1, max_size=3))
def test_many_count_like_one(parts: list[list[tuple[str, str, int]]]) -> None:
    one = CollectorRegistry()
    count(one, [end for part in parts for end in part])
    registries = []
    for part in parts:
        registries.append(CollectorRegistry())
        count(registries[-1], part)
    summed = Summed(registries[0])
    summed.others = {str(n): families_of(each) for n, each in enumerate(registries[1:])}
    assert shown(summed) == shown(one)


@given(first=ENDS, second=ENDS)
def test_what_has_ended_stays_counted(
    first: list[tuple[str, str, int]], second: list[tuple[str, str, int]]
) -> None:
    """A worker that died and its successor count as one that lived on; gauges go with it."""
    dead, alive = CollectorRegistry(), CollectorRegistry()
    count(dead, first)
    count(alive, second)
    Gauge("open", "Open.", registry=dead).set(5)
    whole = CollectorRegistry()
    count(whole, [*first, *second])
    summed = Summed(alive)
    summed.others = {"": total([lasting(families_of(dead))])}
    got, expected = shown(summed), shown(whole)
    assert ("open", ()) not in got
    growing = {key: value for key, value in expected.items() if "in_flight" not in key[0]}
    assert {key: got.get(key) for key in growing} == growing
