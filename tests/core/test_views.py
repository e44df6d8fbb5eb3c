"""The fleet as callers see it."""

from hypothesis import given

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.reducers import from_endpoints, with_load_failure
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.fleet.views import fleet_health, model_list
from cortex_core.harness import Limit
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.replica import ReplicaStatus
from tests.core.strategies import MODELS, catalogues, fleets
from tests.core.test_routing import fleet, node, replica

MODEL = MODELS[0]


@given(fleets(), catalogues())
def test_the_list_is_sorted_and_only_reachable_replicas_count_as_loaded(
    state: FleetState, catalogue: Catalogue
) -> None:
    """Contract: sorted by id; models of unreachable nodes are not `loaded`."""
    listed = model_list(state, catalogue, created=0)

    ids = [entry.id for entry in listed.data]
    assert ids == sorted(set(ids))
    for entry in listed.data:
        served = any(
            n.is_reachable and r.is_servable for n, r in state.replicas_of(ModelId(entry.id))
        )
        assert entry.loaded == served
        for location in entry.locations:
            if not state.nodes[NodeName(location.node)].is_reachable:
                assert location.status == "unknown"


def test_aliases_stand_beside_their_targets_and_dangling_ones_are_left_out() -> None:
    """Contract."""
    catalogue = Catalogue(
        profiles={MODEL: Profile(id=MODEL, harness="simulated")},
        aliases={"small": MODEL, "gone": ModelId("nope")},
    )

    listed = model_list(fleet(node("a", replica("a"))), catalogue, created=1_700_000_000)

    assert [entry.id for entry in listed.data] == [MODEL, "small"]
    assert listed.data[1].alias_of == MODEL
    assert listed.data[1].loaded
    assert listed.data[0].created_at == "2023-11-14T22:13:20Z"


def test_the_smallest_context_of_the_replicas_is_advertised() -> None:
    """Lesson: clients overflow otherwise."""
    state = fleet(
        node("a", replica("a", limit=Limit(context=4096))),
        node("b", replica("b", limit=Limit(context=2048))),
    )

    (entry,) = model_list(state, Catalogue(), created=0).data

    assert entry.max_model_len == 2048
    assert entry.limit == Limit(context=2048)


def test_a_failed_load_shows_its_reason() -> None:
    """Ours: the reason is shown in /v1/models."""
    catalogue = Catalogue(profiles={MODEL: Profile(id=MODEL, harness="simulated")})
    rid = ReplicaId(node=NodeName("a"), model=MODEL)

    (entry,) = model_list(
        with_load_failure(fleet(node("a")), rid, "out of memory", 0.0), catalogue, created=0
    ).data

    assert entry.reason == "the last load on a failed: out of memory"
    assert entry.feasible_on == ("a",)
    assert not entry.loaded


def test_health_is_degraded_as_soon_as_a_node_is_missing() -> None:
    """Contract: ok or degraded."""
    well = fleet(node("a"), node("b"))
    ill = fleet(node("a"), node("b", health=NodeHealth.DOWN))

    assert fleet_health(well).status == "ok"
    assert fleet_health(ill).status == "degraded"
    assert fleet_health(ill).nodes.healthy == 1
    assert fleet_health(from_endpoints({})).status == "degraded"


def test_a_status_of_a_newer_neuron_is_unknown() -> None:
    """Contract: an unknown status is never routable."""
    assert ReplicaStatus.from_wire("hibernating") is ReplicaStatus.UNKNOWN
