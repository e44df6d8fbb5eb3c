"""How much memory a model takes on a node, by the best that anybody knows."""

import msgspec

from cortex_core.fleet.reducers import with_load_failure, with_report
from cortex_core.fleet.sizes import estimated, sized
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.fleet.views import model_object
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import Measured, NodeReport
from cortex_core.placement.steps import Load
from cortex_core.replica import ReplicaStatus
from cortex_core.units import MIB
from tests.core.test_evict import NODE, NOW, WANTED, loaded, models, profile, room
from tests.core.test_placement import fleet, gpu_node
from tests.core.test_tiers import asleep

KNOWN = profile("wanted", vram_mb=10_000)
UNKNOWN = profile("wanted")


def measured(name: str, size_mb: int) -> NodeState:
    """Return a node that has seen how big the model is there."""
    told = {WANTED: Measured(vram_bytes=size_mb * MIB)}
    return msgspec.structs.replace(gpu_node(name, 24_000), measured=told)


def size_mb(state: FleetState, one: object = KNOWN) -> int | None:
    assert isinstance(one, type(KNOWN))
    return sized(state, estimated(state, one), state.nodes[NODE]).vram_mb


def test_what_the_node_measured_is_worth_more_than_the_catalogue() -> None:
    """Issue: estimates come from the catalogue, then from what earlier loads there measured."""
    assert size_mb(fleet(gpu_node("n", 24_000))) == 10_000
    assert size_mb(fleet(measured("n", 14_000))) == 14_000
    assert size_mb(fleet(measured("n", 6_000))) == 6_000


def test_what_others_measured_is_taken_where_nothing_else_is_known() -> None:
    """Issue: else what any node measured; the largest, to be on the safe side."""
    state = fleet(gpu_node("n", 24_000), measured("a", 9_000), measured("b", 12_000))

    assert size_mb(state) == 10_000
    assert size_mb(state, UNKNOWN) == 12_000


def test_what_a_neuron_asked_for_is_remembered_until_it_is_loaded() -> None:
    """Issue: when it answers 507 with the bytes, that is its size."""
    key = ReplicaId(node=NODE, model=WANTED)
    state = fleet(gpu_node("n", 24_000), gpu_node("m", 24_000))
    state = with_load_failure(state, key, "full", NOW, is_for_room=True, needed_bytes=15_000 * MIB)
    again = with_load_failure(state, key, "cut", NOW)

    assert size_mb(state) == size_mb(again) == 15_000
    assert size_mb(again, UNKNOWN) == 15_000
    other = again.nodes[NodeName("m")]
    assert sized(again, estimated(again, UNKNOWN), other).vram_mb == 15_000
    assert sized(again, KNOWN, other).vram_mb == 10_000
    report = NodeReport(replicas=(loaded("wanted", 9_000),))
    assert size_mb(with_report(again, NODE, report, NOW)) == 10_000


def test_a_model_without_a_size_goes_to_the_emptiest_node() -> None:
    """Issue: load it onto the emptiest feasible node."""
    state = fleet(gpu_node("n", 8_000), gpu_node("b", 48_000), gpu_node("c", 24_000))
    known = msgspec.structs.replace(models(), profiles={WANTED: UNKNOWN})
    step = room(state, known)

    assert isinstance(step, Load)
    assert step.replica.node == "b"
    assert step.command.vram_bytes is None


def test_measured_sizes_decide_where_it_fits_and_are_promised() -> None:
    """Issue: used by fit and by the command that is noted."""
    state = fleet(measured("n", 6_000))
    step = room(state, models(30_000))
    too_big = room(fleet(measured("n", 30_000)), models(10_000))

    assert isinstance(step, Load)
    assert step.command.vram_bytes == 6_000 * MIB
    assert not isinstance(too_big, Load)


def test_locations_say_what_a_model_takes_there() -> None:
    """Contract: `vram_estimate_mb`; of a sleeper, what it takes awake."""
    sleeping = asleep("wanted", 9_000)
    loading = msgspec.structs.replace(
        loaded("wanted", 1), status=ReplicaStatus.LOADING, vram_used_bytes=None
    )

    def told(node: NodeState) -> list[int | None]:
        there = model_object(fleet(node), models(10_000), ModelId("wanted"), 0).locations
        return [location.vram_estimate_mb for location in there]

    def holds(node: NodeState, replica: object) -> NodeState:
        return msgspec.structs.replace(node, replicas={WANTED: replica})

    plain = gpu_node("n", 24_000)
    assert told(holds(plain, loaded("wanted", 7_000))) == [7_000]
    assert told(holds(plain, loading)) == [10_000]
    assert told(holds(measured("n", 12_000), loading)) == [12_000]
    assert told(holds(measured("n", 12_000), sleeping)) == [12_000]
