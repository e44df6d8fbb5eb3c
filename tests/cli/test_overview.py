"""What `GET /admin/fleet` says of a snapshot."""

from typing import cast

import httpx
import msgspec
from starlette.applications import Starlette

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.codec import encode_json
from cortex_core.device import Device
from cortex_core.fleet import reducers
from cortex_core.fleet.overview import FleetOverview, fleet_overview
from cortex_core.fleet.state import FleetState
from cortex_core.ids import BootId, DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, report_from_wire
from cortex_core.replica import ReplicaStatus
from cortex_core.server.clock import SystemClock
from cortex_core.units import MIB
from cortex_core.wire.neuron import DeviceHealth, Health, ModelLoad, ModelReport
from cortex_gateway.api.admin import routes
from cortex_gateway.ports import Store

A = NodeName("a")
B = NodeName("b")
MODEL = ModelId("org/model")
CATALOGUE = Catalogue(
    profiles={
        MODEL: Profile(id=MODEL, harness="simulated"),
        ModelId("org/cold"): Profile(id=ModelId("org/cold"), harness="simulated"),
        ModelId("org/real"): Profile(id=ModelId("org/real"), harness="vllm"),
    }
)
FACTS = NodeFacts(
    hostname="host-a",
    devices=(Device(index=DeviceIndex(0), name="SIM-24", vram_total_bytes=24_576 * MIB),),
    harnesses=("simulated",),
    boot_id=BootId("1"),
    version="0.1.0",
)
HEALTH = Health(
    uptime_secs=1,
    devices=(DeviceHealth(index=0, vram_used_mb=1_000, vram_free_mb=23_576),),
    boot_id="1",
    models=(ModelLoad(id=MODEL, status="loaded", in_flight=3, queued=1),),
)
MODELS = (ModelReport(id=MODEL, harness="simulated", devices=(0,), vram_used_mb=1_000),)


def fleet(*up: NodeName) -> FleetState:
    """A fleet of `a` and `b`, of which `up` have reported."""
    state = reducers.from_endpoints({B: "http://b:1", A: "http://a:1"})
    for name in up:
        state = reducers.with_facts(state, name, FACTS)
        report = report_from_wire(name, MODELS if name == A else (), HEALTH)
        state = reducers.with_report(state, name, report, 1.0)
    return state


def test_fleet_is_ok_only_when_every_node_is_up_and_none_drains() -> None:
    """Ours: stricter than `/health`, so that `cortex status` tells of the first miss."""
    missed = reducers.with_miss(fleet(A, B), B, "no route")
    draining = report_from_wire(B, (), msgspec.structs.replace(HEALTH, draining=True))

    assert fleet_overview(fleet(A, B), CATALOGUE).status == "ok"
    assert fleet_overview(fleet(A), CATALOGUE).is_degraded
    assert fleet_overview(missed, CATALOGUE).is_degraded
    assert fleet_overview(reducers.with_report(fleet(A), B, draining, 2.0), CATALOGUE).is_degraded
    assert fleet_overview(FleetState(), CATALOGUE).is_degraded


def test_node_shows_devices_with_readings_and_models_with_load() -> None:
    """Ours: facts and readings are joined by device index, nodes are sorted by name."""
    overview = fleet_overview(fleet(A, B), CATALOGUE)

    first, second = overview.nodes
    assert (first.name, first.health, first.version, first.hostname) == (
        "a", "up", "0.1.0", "host-a",
    )  # fmt: skip
    assert first.devices[0].name == "SIM-24"
    assert first.devices[0].vram_total_bytes == 24_576 * MIB
    assert first.devices[0].vram_used_bytes == 1_000 * MIB
    assert first.devices[0].utilization_ratio is None
    assert (first.models[0].in_flight, first.models[0].queued) == (3, 1)
    assert second.models == ()


def test_model_of_a_node_that_is_down_is_unknown_not_gone() -> None:
    """Architecture, principle 4: losing sight of a node evicts nothing."""
    state = fleet(A, B)
    for _ in range(reducers.MISSES_TO_DOWN):
        state = reducers.with_miss(state, A, "connection refused")

    node = fleet_overview(state, CATALOGUE).nodes[0]

    assert (node.health, node.last_error) == ("down", "connection refused")
    assert [model.status for model in node.models] == [ReplicaStatus.UNKNOWN]


def test_catalogue_models_on_no_node_are_listed_with_the_nodes_that_could_hold_them() -> None:
    """Ours: an operator sees what would load on demand, and why something never will."""
    state = reducers.with_load_failure(
        fleet(A, B), ReplicaId(node=B, model=ModelId("org/cold")), "no weights", 1.0
    )

    cold, real = fleet_overview(state, CATALOGUE).unloaded

    assert (cold.id, cold.feasible_on) == ("org/cold", ("a", "b"))
    assert cold.reason == "the last load on b failed: no weights"
    assert (real.id, real.feasible_on) == ("org/real", ())
    assert real.reason is not None
    assert "no harness 'vllm'" in real.reason


def test_overview_survives_the_wire() -> None:
    """Ours: the CLI decodes with the struct that the gateway encodes."""
    overview = fleet_overview(fleet(A, B), CATALOGUE)

    assert msgspec.json.decode(encode_json(overview), type=FleetOverview) == overview


class FixedStore:
    """The part of a store that the admin API reads."""

    def __init__(self, state: FleetState) -> None:
        self.state = state
        self.catalogue = CATALOGUE


async def test_gateway_answers_with_the_overview() -> None:
    """Contract: `GET /admin/fleet`, and no other method."""
    state = fleet(A, B)
    app = Starlette(routes=routes(cast("Store", FixedStore(state)), SystemClock()))

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway"
    ) as client:
        answer = await client.get("/admin/fleet")
        wrong = await client.post("/admin/fleet")

    assert (answer.status_code, wrong.status_code) == (200, 405)
    assert answer.headers["content-type"] == "application/json"
    assert msgspec.json.decode(answer.content, type=FleetOverview) == fleet_overview(
        state, CATALOGUE
    )
