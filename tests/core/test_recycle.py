"""When a node's engine processes are replaced."""

from typing import Any

import msgspec
import pytest

from cortex_core.fleet.reducers import with_command, with_recycling, with_report, without_recycling
from cortex_core.fleet.state import FleetState, LoadCommand, NodeHealth, NodeState, Resident
from cortex_core.ids import BootId, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.placement.recycle import IN_USE_S
from cortex_core.placement.steps import Hold, Load, Recycle
from cortex_core.replica import Replica, ReplicaStatus
from tests.core.test_copies import MODEL, catalogue, node, on
from tests.core.test_evict import NOW
from tests.core.test_placement import fleet

POLICY = EvictionPolicy(defrag_after_cycles=50)


def worn(name: str, cycles: int | None = 60, **fields: Any) -> NodeState:
    """Return a node that has loaded and unloaded often; the model there was used long ago."""
    return msgspec.structs.replace(node(name, on(name)), cycles=cycles, **fields)


def changing(name: str, status: ReplicaStatus) -> Replica:
    return msgspec.structs.replace(on(name), status=status)


def recycled(state: FleetState, policy: EvictionPolicy = POLICY, **more: Any) -> list[str]:
    steps = plan(state, catalogue(high=3), [], NOW, policy=policy, **more)
    return [step.node for step in steps if isinstance(step, Recycle)]


def test_a_node_is_recycled_after_so_many_cycles() -> None:
    """Issue: `defrag_after_cycles`; 0 is never, and who does not count is left alone."""
    assert recycled(fleet(worn("a"))) == ["a"]
    assert recycled(fleet(worn("a", 49))) == []
    assert recycled(fleet(worn("a", None))) == []
    assert recycled(fleet(worn("a")), EvictionPolicy(defrag_after_cycles=0)) == []


def test_one_node_at_a_time_and_the_most_worn_first() -> None:
    """Issue: one node of the fleet at a time."""
    state = fleet(worn("a"), worn("b", 90))
    noted = with_recycling(state, NodeName("b"))

    assert recycled(state) == ["b"]
    assert recycled(noted) == []
    assert recycled(without_recycling(noted, NodeName("b"))) == ["b"]
    assert without_recycling(noted, NodeName("a")) is noted


@pytest.mark.parametrize(
    "other",
    [
        {"is_draining": True},
        {"health": NodeHealth.DOWN},
        {"replicas": {MODEL: changing("b", ReplicaStatus.RELOADING)}},
        {"is_recycling": True},
    ],
)
def test_another_node_that_is_away_is_waited_for(other: dict[str, Any]) -> None:
    """Ours: another gateway may be recycling it; two at a time would be too many."""
    assert recycled(fleet(worn("a"), msgspec.structs.replace(node("b", on("b")), **other))) == []


def test_the_only_home_of_a_model_in_use_stays() -> None:
    """Issue: never while it is the only home of a model in use."""
    lately = {MODEL: Resident(since=0.0, used=NOW - IN_USE_S / 2)}
    alone = fleet(worn("a", residents=lately))
    served = fleet(worn("a", residents=lately), node("b", on("b")))
    busy = fleet(worn("a", replicas={MODEL: on("a", in_flight=1)}), node("b", on("b")))

    assert recycled(alone) == []
    assert recycled(served) == ["a"]
    assert recycled(busy) == []


def test_a_node_whose_model_is_waited_for_stays() -> None:
    """Issue: or waited for."""
    assert recycled(fleet(worn("a")), waiting={MODEL: 1}) == []


def test_a_copy_that_is_away_to_be_recycled_is_not_loaded_elsewhere() -> None:
    """Ours: the neuron brings its models back itself."""
    state = fleet(msgspec.structs.replace(worn("a"), replicas={}), node("b"))
    kept = catalogue(low=1)

    away = msgspec.structs.replace(state.nodes[NodeName("a")], is_recycling=True)
    told = fleet(away, state.nodes[NodeName("b")])

    assert plan(with_recycling(state, NodeName("a")), kept, [], NOW) == ()
    assert plan(told, kept, [], NOW) == ()
    assert len(plan(state, kept, [], NOW)) == 1


def test_a_node_with_something_under_way_stays() -> None:
    """Ours: what was begun is finished."""
    state = fleet(worn("a"))
    target = ReplicaId(node=NodeName("a"), model=ModelId("x"))
    sent = with_command(state, target, LoadCommand(devices=(), vram_bytes=None, sent_at=NOW))

    assert recycled(sent) == []


def test_a_node_that_is_being_recycled_is_given_nothing() -> None:
    """Ours: its engines are on their way out."""
    empty = msgspec.structs.replace(worn("a"), replicas={})
    state = with_recycling(fleet(empty), NodeName("a"))
    (held,) = plan(state, catalogue(), [MODEL], NOW)
    (load,) = plan(fleet(empty), catalogue(), [MODEL], NOW)

    assert isinstance(held, Hold)
    assert "recycled" in held.why
    assert isinstance(load, Load)


def test_a_node_that_would_not_is_left_alone_for_a_while() -> None:
    """Ours: and asked anew in another life."""
    noted = with_recycling(fleet(worn("a")), NodeName("a"))
    failed = without_recycling(noted, NodeName("a"), retry_at=NOW + 10)
    report = NodeReport(replicas=(), cycles=60, boot_id=BootId("other"))

    assert recycled(failed) == []
    assert (
        with_report(failed, NodeName("a"), report, NOW).nodes[NodeName("a")].recycle_after is None
    )
