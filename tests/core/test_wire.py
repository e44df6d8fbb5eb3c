"""The neuron's messages: what the given system sends, what ours adds, what is tolerated."""

import msgspec
import pytest

from cortex_core.harness import Capabilities, Limit
from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.node import facts_from_wire, reachable_url, report_from_wire
from cortex_core.replica import LoadProgress, ReplicaStatus
from cortex_core.units import MIB
from cortex_core.wire.neuron import Discovery, Health, LoadRequest, ModelReport, UnloadRequest

GIVEN_DISCOVERY = b"""{"hostname": "beast", "os": "Linux", "kernel": "6.1",
 "cuda_version": "12.4", "driver_version": "550.54",
 "devices": [{"index": 0, "name": "RTX 4090", "vram_total_mb": 24564,
              "compute_capability": "8.9"}], "harnesses": ["vllm"]}"""

GIVEN_HEALTH = b"""{"uptime_secs": 5, "devices": [{"index": 0, "vram_used_mb": 100,
 "vram_free_mb": 24464, "utilization_pct": 50, "temp_c": 41}],
 "activation": {"state": "pre_warming", "pending": ["a"], "in_progress": "b", "completed": [],
                "failed": [{"model_id": "c", "error": "no weights"}]}}"""

GIVEN_MODELS = b"""[{"id": "org/a", "harness": "vllm", "status": "loaded", "devices": [0],
 "vram_used_mb": 100}, {"id": "org/b", "harness": "vllm", "status": "poisoned", "devices": []}]"""

BEAST = NodeName("beast")


def test_a_neuron_with_only_the_given_fields_is_understood() -> None:
    """Contract: rows marked (given) keep working as they are."""
    facts = facts_from_wire(msgspec.json.decode(GIVEN_DISCOVERY, type=Discovery))
    health = msgspec.json.decode(GIVEN_HEALTH, type=Health)
    models = msgspec.json.decode(GIVEN_MODELS, type=tuple[ModelReport, ...])
    report = report_from_wire(BEAST, models, health)

    assert facts.boot_id is None
    assert facts.devices[0].vram_total_bytes == 24564 * MIB
    assert [replica.status for replica in report.replicas] == ["loaded", "poisoned"]
    assert report.replicas[0].is_servable
    assert report.devices[0].utilization_ratio == pytest.approx(0.5)
    assert report.activation is not None
    assert report.activation.failed[0].error == "no weights"


def test_fields_and_statuses_of_a_newer_neuron_are_tolerated() -> None:
    """Contract: a gateway and a neuron one version apart still work together."""
    raw = b'[{"id": "org/a", "status": "levitating", "orbit": {"km": 4}, "devices": [1]}]'

    (replica,) = report_from_wire(
        BEAST, msgspec.json.decode(raw, type=tuple[ModelReport, ...]), None
    ).replicas

    assert replica.status is ReplicaStatus.UNKNOWN
    assert not replica.is_servable


def test_missing_readings_are_unknown_not_zero() -> None:
    """Lesson: `[N/A]` fields must not become 0."""
    raw = b'{"uptime_secs": 1, "devices": [{"index": 3}]}'

    (reading,) = report_from_wire(BEAST, (), msgspec.json.decode(raw, type=Health)).devices

    assert reading.index == 3
    assert reading.vram_free_bytes is None
    assert reading.utilization_ratio is None


def test_our_fields_of_a_model_are_taken_over() -> None:
    """Contract: the row of `GET /models`."""
    raw = b"""[{"id": "org/a", "status": "loading", "devices": [0, 1], "vram_used_mb": 10,
      "capabilities": {"chat": true, "tools": true}, "limit": {"context": 4096},
      "servable": {"ok": false, "reason": "warming up"},
      "progress": {"stage": "weights", "done_bytes": 1, "total_bytes": 2, "eta_s": 3.5}}]"""
    health = msgspec.json.decode(
        b'{"uptime_secs": 1, "boot_id": "b", "draining": true,'
        b' "models": [{"id": "org/a", "status": "loading", "in_flight": 4, "queued": 2}]}',
        type=Health,
    )

    report = report_from_wire(BEAST, msgspec.json.decode(raw, type=tuple[ModelReport, ...]), health)

    (replica,) = report.replicas
    assert replica.id.model == ModelId("org/a")
    assert replica.devices == (DeviceIndex(0), DeviceIndex(1))
    assert replica.capabilities == Capabilities(chat=True, tools=True)
    assert replica.limit == Limit(context=4096)
    assert replica.unservable_reason == "warming up"
    assert replica.progress == LoadProgress(stage="weights", done_bytes=1, total_bytes=2, eta_s=3.5)
    assert (replica.in_flight, replica.queued) == (4, 2)
    assert report.is_draining


def test_commands_look_as_the_contract_shows_them() -> None:
    """Contract: golden forms of the bodies that a gateway sends."""
    load = LoadRequest(
        model_id="org/a", harness="vllm", devices=(0,), engine={"max_model_len": 512}
    )

    assert msgspec.json.decode(msgspec.json.encode(load)) == {
        "model_id": "org/a",
        "harness": "vllm",
        "quant": None,
        "tensor_parallel": None,
        "pipeline_parallel": None,
        "devices": [0],
        "engine": {"max_model_len": 512},
        "vram_mb": None,
        "max_in_flight": None,
        "max_queue": None,
        "max_wait_s": None,
        "max_share": None,
        "automatic": False,
        "peers": None,
        "base": None,
        "adapter": None,
    }
    assert msgspec.json.decode(b'{"model_id": "org/a"}', type=UnloadRequest) == UnloadRequest(
        model_id="org/a"
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("http://127.0.0.1:8001", "http://beast.internal:8001"),
        ("http://localhost:8001/", "http://beast.internal:8001"),
        ("http://[::1]:8001/base", "http://beast.internal:8001/base"),
        ("http://0.0.0.0:8001", "http://beast.internal:8001"),
        ("http://10.0.0.7:8001/", "http://10.0.0.7:8001"),
        ("https://localhost", "https://beast.internal"),
    ],
)
def test_a_loopback_address_is_replaced_by_the_configured_host(told: str, expected: str) -> None:
    """Contract: `GET /models/{id}/endpoint` (given)."""
    assert reachable_url(told, "http://beast.internal:13131") == expected


def test_an_ipv6_host_keeps_its_brackets() -> None:
    """RFC 3986 section 3.2.2."""
    assert reachable_url("http://localhost:1", "http://[fd00::7]:13131") == "http://[fd00::7]:1"
