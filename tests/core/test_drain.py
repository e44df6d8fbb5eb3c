"""What becomes of the models on a node that is drained."""

import msgspec
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.device import Device, DeviceReading
from cortex_core.fleet.reducers import from_endpoints, with_facts, with_report
from cortex_core.fleet.state import FleetState
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.placement.drain import IN_USE_S, Draining, departures
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.replica import Replica, ReplicaStatus

GIB = 1 << 30
ONE, TWO, THREE = NodeName("one"), NodeName("two"), NodeName("three")
A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
CATALOGUE = Catalogue(
    profiles={
        model: Profile(id=model, harness="simulated", vram_mb=10 * 1024) for model in (A, B, C)
    }
)


def replica(node: NodeName, model: ModelId, **fields: object) -> Replica:
    base = Replica(
        id=ReplicaId(node=node, model=model),
        status=ReplicaStatus.LOADED,
        devices=(DeviceIndex(0),),
        vram_used_bytes=10 * GIB,
    )
    return msgspec.structs.replace(base, **fields)


def fleet(*replicas: Replica, cordoned: tuple[NodeName, ...] = ()) -> FleetState:
    """Three nodes of 24 GiB that reported at 0 s."""
    state = from_endpoints({name: f"http://{name}" for name in (ONE, TWO, THREE)})
    device = Device(
        index=DeviceIndex(0), name="SIM", vram_total_bytes=24 * GIB, compute_capability="8.9"
    )
    facts = NodeFacts(hostname="h", devices=(device,), harnesses=("simulated",))
    for name in state.nodes:
        here = tuple(one for one in replicas if one.id.node == name)
        used = sum(one.vram_used_bytes or 0 for one in here)
        reading = DeviceReading(
            index=DeviceIndex(0), vram_used_bytes=used, vram_free_bytes=24 * GIB - used
        )
        report = NodeReport(replicas=here, devices=(reading,), is_cordoned=name in cordoned)
        state = with_report(with_facts(state, name, facts), name, report, 0.0)
    return state


def case(now: float = 1.0, *demanded: ModelId) -> Draining:
    return Draining(
        catalogue=CATALOGUE,
        policy=EvictionPolicy(min_residency_s=0.0),
        rates={},
        demanded=frozenset(demanded),
        now=now,
    )


def outcomes(state: FleetState, asked: Draining) -> dict[ModelId, tuple[str, NodeName | None]]:
    return {one.model: (one.outcome, one.to) for one in departures(state, ONE, asked)}


def test_what_nobody_uses_goes_and_what_is_in_use_moves() -> None:
    """Ours: nobody who uses a model waits for it."""
    state = fleet(
        replica(ONE, A), replica(ONE, B, in_flight=1), replica(ONE, C, status=ReplicaStatus.FAILED)
    )

    # Both have the same room, and names decide then.
    assert outcomes(state, case()) == {A: ("unloaded", None), B: ("moved", THREE)}


def test_a_model_stays_in_use_for_a_while_after_its_last_request() -> None:
    """Ours: an agent comes back for its next turn."""
    used = fleet(replica(ONE, A, last_used=1.0))
    report = NodeReport(replicas=(replica(ONE, A, last_used=2.0),))
    used = with_report(used, ONE, report, 10.0)

    assert outcomes(used, case(10.0 + IN_USE_S - 1))[A][0] == "moved"
    assert outcomes(used, case(10.0 + IN_USE_S))[A][0] == "unloaded"


def test_a_model_that_requests_wait_for_is_in_use() -> None:
    """Ours: also while it is still being loaded there."""
    state = fleet(replica(ONE, A, status=ReplicaStatus.LOADING))

    assert outcomes(state, case(1.0, A))[A][0] == "moved"
    assert outcomes(state, case(1.0))[A][0] == "unloaded"


def test_one_that_is_served_elsewhere_needs_no_load() -> None:
    """Ours."""
    state = fleet(replica(ONE, A, in_flight=1), replica(THREE, A))

    assert outcomes(state, case()) == {A: ("moved", THREE)}


def test_nothing_moves_to_a_cordoned_node() -> None:
    """Ours: whoever drains two nodes does not want them to pass models back and forth."""
    state = fleet(replica(ONE, A, in_flight=1), cordoned=(TWO,))

    assert outcomes(state, case()) == {A: ("moved", THREE)}
    state = fleet(replica(ONE, A, in_flight=1), cordoned=(TWO, THREE))
    (stays,) = departures(state, ONE, case())
    assert stays.outcome == "stays"
    assert stays.reason.endswith("there is no other node that takes models")


def test_those_who_move_do_not_count_on_the_same_room() -> None:
    """Ours: two of 10 GiB fit on a node of 24, the third has to go elsewhere."""
    busy = [replica(ONE, model, in_flight=1) for model in (A, B, C)]
    homes = [to for _, to in outcomes(fleet(*busy), case()).values()]

    assert sorted(str(home) for home in homes) in (
        ["three", "three", "two"],
        ["three", "two", "two"],
    )


def test_pinned_ones_stay_and_say_so() -> None:
    """Issue: pinned never; by the catalogue or by an operator."""
    state = fleet(replica(ONE, A, is_pinned=True))

    (stays,) = departures(state, ONE, case())
    assert (stays.outcome, stays.reason) == ("stays", "it is pinned there")


def test_what_is_not_in_the_catalogue_stays_while_it_is_in_use() -> None:
    """Ours: nobody could bring it back."""
    stranger = ModelId("stranger")

    assert outcomes(fleet(replica(ONE, stranger)), case()) == {stranger: ("unloaded", None)}
    busy = fleet(replica(ONE, stranger, queued=1))
    assert outcomes(busy, case()) == {stranger: ("stays", None)}


@given(
    st.lists(
        st.tuples(
            st.sampled_from((ONE, TWO, THREE)),
            st.sampled_from((A, B, C)),
            st.sampled_from(list(ReplicaStatus)),
            st.booleans(),
            st.booleans(),
        ),
        unique_by=lambda one: one[:2],
    )
)
def test_whoever_leaves_is_never_pinned_and_never_in_use_without_another_home(
    placed: list[tuple[NodeName, ModelId, ReplicaStatus, bool, bool]],
) -> None:
    """Ours: for every fleet."""
    replicas = [
        replica(node, model, status=status, is_pinned=pinned, in_flight=int(busy))
        for node, model, status, pinned, busy in placed
    ]
    here = {one.id.model: one for one in replicas if one.id.node == ONE}

    found = departures(fleet(*replicas), ONE, case())

    assert [one.model for one in found] == sorted(one.model for one in found)
    for departure in found:
        left = here[departure.model]
        if departure.outcome != "stays":
            assert not left.is_pinned
            assert not left.in_flight or departure.to not in (None, ONE)
