"""What room there is, while models come and go and readings lag behind."""

import math

import msgspec
import pytest

from cortex_core.device import DeviceReading
from cortex_core.fleet.reducers import (
    with_load_failure,
    with_report,
    with_swap,
)
from cortex_core.fleet.state import FleetState, Swap, Victim
from cortex_core.ids import DeviceIndex, ModelId, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.placement.fit import READING_LAG_S, free_bytes
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.placement.steps import Hold, Load
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.explain import Outcome, explain
from cortex_core.routing.route import Refuse, RouteHints, Wait, route
from cortex_core.units import MIB
from tests.core.test_evict import NODE, NOW, WANTED, loaded, models, profile, room, with_replicas
from tests.core.test_placement import fleet, gpu_node, make_room


@pytest.mark.parametrize("status", [ReplicaStatus.LOADING, ReplicaStatus.UNLOADING])
def test_what_is_still_coming_or_going_is_waited_for(status: ReplicaStatus) -> None:
    """Issue: a request is held, never refused outright, where room will be."""
    replica = msgspec.structs.replace(loaded("x", 20_000), status=status)
    state = with_replicas(replica)
    held = room(state, models())
    decision = route(state, models(), WANTED, hints=RouteHints(), in_flight={}, now=NOW)

    assert isinstance(held, Hold)
    assert held.retry_at == math.inf
    assert isinstance(decision, Wait)


def test_what_a_strangers_process_holds_is_not_waited_for() -> None:
    """Ours: nobody can make it give way."""
    state = with_replicas(loaded("x", 2_000))
    reading = DeviceReading(index=DeviceIndex(0), vram_free_bytes=1_000 * MIB)
    node = msgspec.structs.replace(state.nodes[NODE], readings={DeviceIndex(0): reading})
    step = room(msgspec.structs.replace(state, nodes={NODE: node}), models())

    assert isinstance(step, Hold)
    assert step.retry_at is None


def test_memory_that_was_given_back_just_now_is_waited_for() -> None:
    """Ours: a report of models may come before the reading that shows their memory."""
    node = gpu_node("n", 24_000)
    reading = DeviceReading(index=DeviceIndex(0), vram_free_bytes=1_000 * MIB)
    state = fleet(node)
    before = NodeReport(replicas=(loaded("x", 20_000),), devices=(reading,))
    state = with_report(state, NODE, before, NOW)
    state = with_report(state, NODE, NodeReport(replicas=(), devices=(reading,)), NOW)
    early, late = (make_room(state, models(), WANTED, NOW + wait) for wait in (1.0, 60.0))

    assert isinstance(early, Hold)
    assert isinstance(late, Hold)
    assert (early.retry_at, late.retry_at) == (NOW + READING_LAG_S, None)


def test_one_swap_does_not_empty_the_device() -> None:
    """Ours: the reading still shows the memory of who has left; nobody else must go for that."""
    full = DeviceReading(index=DeviceIndex(0), vram_free_bytes=3_000 * MIB)
    before = [loaded(name, 7_000, last_used=float(at)) for at, name in enumerate("abc")]
    state = fleet(gpu_node("n", 24_000))
    state = with_report(state, NODE, NodeReport(replicas=tuple(before), devices=(full,)), 0.0)
    left = NodeReport(replicas=tuple(before[1:]), devices=(full,))
    state = with_report(state, NODE, left, NOW)
    other = gpu_node("other", 24_000)
    crowded = {ModelId("x"): loaded("x", 23_000, node="other")}
    nodes = {**state.nodes, other.name: msgspec.structs.replace(other, replicas=crowded)}
    state = msgspec.structs.replace(state, nodes=nodes)

    assert isinstance(room(state, models(7_000)), Hold)


def test_who_is_leaving_already_is_enough() -> None:
    """Ours: as after a restart of the gateway, or when another gateway has asked for it."""
    leaving = msgspec.structs.replace(loaded("a", 10_000), status=ReplicaStatus.UNLOADING)
    state = with_replicas(leaving, loaded("b", 10_000))
    step = room(state, models(10_000))

    assert isinstance(step, Hold)
    assert step.retry_at == math.inf


def test_room_of_two_swaps_is_promised_once() -> None:
    """Ours: what the victims of one hold is nothing for the other."""
    first = Swap(
        node=NODE,
        devices=(DeviceIndex(0),),
        share_bytes=14_000 * MIB,
        victims=(Victim(replica=ReplicaId(node=NODE, model=ModelId("a"))),),
    )
    second = Swap(
        node=NODE,
        devices=(DeviceIndex(0),),
        share_bytes=4_000 * MIB,
        victims=(Victim(replica=ReplicaId(node=NODE, model=ModelId("b"))),),
    )
    state = with_replicas(loaded("a", 10_000), loaded("b", 4_000))
    state = with_swap(with_swap(state, ModelId("x"), first), ModelId("y"), second)

    # 24000 less 10000 and 4000 that are held, less the 4000 that the first wants beside them.
    assert free_bytes(state, models(), state.nodes[NODE]) == {0: 6_000 * MIB}


def test_promises_count_where_the_driver_says_what_is_free_as_well() -> None:
    """Ours: a load that is on its way is not in the reading."""
    node = gpu_node("n", 24_000)
    reading = DeviceReading(index=DeviceIndex(0), vram_free_bytes=18_000 * MIB)
    state = fleet(msgspec.structs.replace(node, readings={DeviceIndex(0): reading}))
    a, b = profile("a", vram_mb=12_000), profile("b", vram_mb=12_000)
    steps = plan(state, models(a=a, b=b), [a.id, b.id], NOW)

    assert [type(step) for step in steps] == [Load, Hold]


def test_a_race_for_room_that_was_lost_is_waited_out() -> None:
    """Ours: with two gateways one is quicker; the callers of the other one are held."""
    key = ReplicaId(node=NODE, model=WANTED)
    state = fleet(gpu_node("n", 24_000))
    lost = with_load_failure(state, key, "needs more than is free", NOW, is_for_room=True)
    broken = with_load_failure(state, key, "no such weights", NOW)

    def decided(state: FleetState) -> object:
        return route(state, models(), WANTED, hints=RouteHints(), in_flight={}, now=NOW)

    def told(state: FleetState) -> Outcome:
        policy = EvictionPolicy()
        return explain(state, models(), WANTED, policy=policy, rates={}, now=NOW).outcome

    assert (type(decided(lost)), told(lost)) == (Wait, Outcome.WAIT)
    assert (type(decided(broken)), told(broken)) == (Refuse, Outcome.REFUSE)
