"""The gateway's series, by the names that dashboards know."""

from prometheus_client import CollectorRegistry

from cortex_core.device import Device, DeviceReading
from cortex_core.fleet.breaker import FAILURES_TO_EJECT
from cortex_core.fleet.reducers import (
    from_endpoints,
    with_facts,
    with_miss,
    with_report,
    with_request_failure,
    with_request_success,
)
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.replica import Replica, ReplicaStatus
from cortex_gateway.fleet_metrics import FleetCollector
from cortex_gateway.metrics import UNKNOWN, GatewayMetrics

NODE = NodeName("beast")
LABELS = {"model": "m", "node": NODE}


def ended(
    metrics: GatewayMetrics,
    *,
    model: str = "m",
    node: str = NODE,
    outcome: str = "ok",
    has_begun: bool = False,
    is_cold_start: bool = False,
    load_s: float = 0.0,
    completion_tokens: int | None = 20,
) -> None:
    metrics.ended(
        model=model,
        node=node,
        outcome=outcome,
        has_begun=has_begun,
        is_cold_start=is_cold_start,
        duration_s=3.0,
        queue_s=0.5,
        load_s=load_s,
        ttft_s=1.0,
        inter_token_s=0.1,
        prompt_tokens=7,
        cached_prompt_tokens=None,
        completion_tokens=completion_tokens,
    )


def test_the_given_names_are_there_from_the_start() -> None:
    """Contract: (given) metrics; a dashboard shows 0, not "no data"."""
    registry = CollectorRegistry()

    GatewayMetrics(registry)

    names = {family.name for family in registry.collect()}
    assert names >= {
        "cortex_requests",
        "cortex_request_errors",
        "cortex_cold_starts",
        "cortex_evictions",
        "cortex_request_duration_seconds",
        "cortex_time_to_first_token_seconds",
        "cortex_tokens_per_second",
    }


def test_request_is_counted_with_its_durations_and_tokens() -> None:
    """Ours: one call at the end of a request feeds every series."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)

    ended(metrics, is_cold_start=True, load_s=0.25)

    value = registry.get_sample_value
    assert value("cortex_requests_total", {**LABELS, "outcome": "ok"}) == 1
    assert value("cortex_request_errors_total", LABELS) is None
    assert value("cortex_cold_starts_total", LABELS) == 1
    assert value("cortex_request_duration_seconds_sum", LABELS) == 3
    assert value("cortex_time_to_first_token_seconds_sum", LABELS) == 1
    assert value("cortex_inter_token_seconds_sum", LABELS) == 0.1
    assert value("cortex_queue_seconds_sum", LABELS) == 0.75
    # 20 tokens in the 2 s after the first token.
    assert value("cortex_tokens_per_second_sum", LABELS) == 10
    assert value("cortex_prompt_tokens_total", LABELS) == 7
    assert value("cortex_completion_tokens_total", LABELS) == 20
    assert value("cortex_cached_prompt_tokens_total", LABELS) is None


def test_histograms_have_real_buckets() -> None:
    """Contract: the seed exported summaries, and panels said "no data"."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)

    ended(metrics)

    bucket = {**LABELS, "le": "5.0"}
    assert registry.get_sample_value("cortex_request_duration_seconds_bucket", bucket) == 1
    assert registry.get_sample_value("cortex_time_to_first_token_seconds_bucket", bucket) == 1


def test_refusal_before_any_node_is_a_rejection_and_an_error() -> None:
    """Ours: requests count whatever becomes of them."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)

    ended(metrics, model=UNKNOWN, node=UNKNOWN, outcome="model_not_found", completion_tokens=None)

    labels = {"model": UNKNOWN, "node": UNKNOWN}
    value = registry.get_sample_value
    assert value("cortex_rejections_total", {"reason": "model_not_found"}) == 1
    assert value("cortex_request_errors_total", labels) == 1
    assert value("cortex_request_duration_seconds_count", labels) == 1
    # It was never dispatched, so it has no time of dispatch.
    assert value("cortex_queue_seconds_count", labels) is None
    assert value("cortex_requests_total", {**labels, "outcome": "model_not_found"}) == 1


def test_caller_that_hung_up_is_no_error() -> None:
    """Ours."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)

    ended(metrics, outcome="client_gone")

    assert registry.get_sample_value("cortex_request_errors_total", LABELS) is None


def test_in_flight_goes_up_and_down() -> None:
    """Ours: down only for what went up."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)

    metrics.began("m")
    metrics.began("m")
    ended(metrics, has_begun=True)
    ended(metrics, has_begun=False)

    assert registry.get_sample_value("cortex_requests_in_flight", {"model": "m"}) == 1


def test_fleet_gauges_follow_the_snapshot_and_leave_nothing_stale() -> None:
    """Ours: what a node that is down said last is not repeated as if it were true."""
    registry = CollectorRegistry()
    device = Device(index=DeviceIndex(0), name="SIM", vram_total_bytes=100)
    reading = DeviceReading(index=DeviceIndex(0), vram_used_bytes=40, utilization_ratio=0.25)
    replica = Replica(id=ReplicaId(node=NODE, model=ModelId("m")), status=ReplicaStatus.LOADED)
    state = from_endpoints({NODE: "http://h"})
    state = with_facts(state, NODE, NodeFacts(hostname="h", devices=(device,), harnesses=()))
    state = with_report(state, NODE, NodeReport(replicas=(replica,), devices=(reading,)), 0.0)
    registry.register(FleetCollector(lambda: state, dict, lambda: 0.0))
    memory = {"node": NODE, "device": "0", "kind": "used"}
    value = registry.get_sample_value

    assert value("cortex_node_up", {"node": NODE}) == 1
    assert value("cortex_replica_state", {**LABELS, "state": "loaded"}) == 1
    assert value("cortex_device_memory_bytes", memory) == 40
    assert value("cortex_device_memory_bytes", {**memory, "kind": "total"}) == 100
    # The driver gave no value, which is not 0.
    assert value("cortex_device_memory_bytes", {**memory, "kind": "free"}) is None
    assert value("cortex_device_utilization_ratio", {"node": NODE, "device": "0"}) == 0.25

    for _ in range(3):
        state = with_miss(state, NODE, "silent")

    assert value("cortex_node_up", {"node": NODE}) == 0
    assert value("cortex_replica_state", {**LABELS, "state": "loaded"}) is None
    assert value("cortex_replica_state", {**LABELS, "state": "unknown"}) == 1
    assert value("cortex_device_memory_bytes", memory) is None


def test_breakers_and_waits_are_shown_as_they_are_at_the_scrape() -> None:
    """Ours: a breaker that let go shows 0 until a request succeeds, then nothing."""
    registry, now = CollectorRegistry(), 0.0
    replica = ReplicaId(node=NODE, model=ModelId("m"))
    state = from_endpoints({NODE: "http://h"})
    for _ in range(FAILURES_TO_EJECT):
        state = with_request_failure(state, replica, now)
    registry.register(FleetCollector(lambda: state, lambda: {ModelId("m"): 2}, lambda: now))
    value = registry.get_sample_value

    assert value("cortex_requests_waiting", {"model": "m"}) == 2
    assert value("cortex_breaker_open", LABELS) == 1

    now = 1e6
    assert value("cortex_breaker_open", LABELS) == 0

    state = with_request_success(state, replica)
    assert value("cortex_breaker_open", LABELS) is None
