"""Who gives way so that a model fits, who never does, and what nobody uses."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.rates import MEMORY_S, counted, per_second
from cortex_core.fleet.reducers import (
    with_report,
    with_swap,
    without_swap,
)
from cortex_core.fleet.state import FleetState, Resident
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.placement.case import Case
from cortex_core.placement.fit import free_bytes
from cortex_core.placement.idle import idle_replicas
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import EvictionPolicy, Strategy, priority_of
from cortex_core.placement.steps import Evict, Hold, Load, Retire, Step
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.route import RouteHints, Wait, route
from cortex_core.units import MIB
from tests.core.test_placement import fleet, gpu_node, make_room

NOW = 1000.0
NODE = NodeName("n")
WANTED = ModelId("wanted")


def loaded(model: str, size_mb: int, *, device: int = 0, node: str = "n", **fields: Any) -> Replica:
    return Replica(
        id=ReplicaId(node=NodeName(node), model=ModelId(model)),
        status=ReplicaStatus.LOADED,
        devices=(DeviceIndex(device),),
        vram_used_bytes=size_mb * MIB,
        **fields,
    )


def with_replicas(*replicas: Replica, sizes_mb: tuple[int, ...] = (24_000,)) -> FleetState:
    """Return one node that has had `replicas` for a long time."""
    node = gpu_node("n", *sizes_mb)
    node = msgspec.structs.replace(node, replicas={r.id.model: r for r in replicas})
    residents = {r.id.model: Resident(since=0.0, used=0.0) for r in replicas}
    return with_residents(fleet(node), residents)


def with_residents(state: FleetState, residents: Mapping[ModelId, Resident]) -> FleetState:
    """Return the fleet with these on the node `n`, since and used as given."""
    node = msgspec.structs.replace(state.nodes[NODE], residents=residents)
    return msgspec.structs.replace(state, nodes={**state.nodes, NODE: node})


def models(wanted_mb: int = 20_000, **others: Profile) -> Catalogue:
    """Return the wanted model and all that the tests here have loaded, but `strange`."""
    wanted = Profile(id=WANTED, harness="simulated", vram_mb=wanted_mb)
    names = ("a", "b", "busy", "c", "idle", "old", "quick", "slow", "x", "young")
    known = {ModelId(name): profile(name) for name in names}
    return Catalogue(profiles={WANTED: wanted, **known, **{p.id: p for p in others.values()}})


def profile(model: str, **fields: Any) -> Profile:
    return Profile(id=ModelId(model), harness="simulated", **fields)


def victims(step: Step) -> list[str]:
    assert isinstance(step, Evict), step
    return [victim.model for victim in step.swap.replicas]


def room(state: FleetState, catalogue: Catalogue, **more: Any) -> Step:
    return make_room(state, catalogue, WANTED, NOW, **more)


def idle(
    state: FleetState, catalogue: Catalogue, policy: EvictionPolicy, *wanted: str
) -> list[str]:
    """Return what is unloaded for want of use."""
    needed = frozenset(map(ModelId, wanted))
    case = Case(state=state, catalogue=catalogue, now=NOW, policy=policy, wanted=needed)
    return [replica.model for replica in idle_replicas(case)]


def by(strategy: Strategy) -> EvictionPolicy:
    return EvictionPolicy(strategy=strategy)


def test_the_three_strategies_choose_differently() -> None:
    """Issue: each really different and tested as such."""
    state = with_replicas(
        loaded("old", 10_000, last_used=10.0, load_s=50.0),
        loaded("humble", 10_000, last_used=30.0, load_s=50.0),
        loaded("cheap", 10_000, last_used=20.0, load_s=1.0),
        sizes_mb=(32_000,),
    )
    catalogue = models(
        10_000,
        old=profile("old", residency_priority=90),
        humble=profile("humble", residency_priority=10),
        cheap=profile("cheap", residency_priority=90),
    )
    rates = {ModelId(name): 0.01 for name in ("old", "humble", "cheap")}

    chosen = {
        strategy: victims(room(state, catalogue, policy=by(strategy), rates=rates))
        for strategy in Strategy
    }

    assert chosen == {
        Strategy.LRU: ["old"],
        Strategy.PRIORITY: ["humble"],
        Strategy.COST: ["cheap"],
    }


def test_cost_weighs_a_load_by_the_chance_that_it_comes() -> None:
    """Issue: expected seconds lost."""
    state = with_replicas(
        loaded("slow", 10_000, load_s=100.0), loaded("quick", 10_000, load_s=10.0)
    )
    never, often = {ModelId("quick"): 1.0}, {ModelId("slow"): 1.0, ModelId("quick"): 1.0}

    assert victims(room(state, models(10_000), policy=by(Strategy.COST), rates=never)) == ["slow"]
    assert victims(room(state, models(10_000), policy=by(Strategy.COST), rates=often)) == ["quick"]


def test_as_many_give_way_as_are_needed_and_no_more() -> None:
    """Issue: several victims when one is not enough."""
    state = with_replicas(
        loaded("a", 2_000, last_used=1.0),
        loaded("b", 8_000, last_used=2.0),
        loaded("c", 12_000, last_used=3.0),
    )

    assert victims(room(state, models(10_000))) == ["b"]
    assert victims(room(state, models(11_000))) == ["a", "b"]
    assert victims(room(state, models(13_000))) == ["c"]
    assert victims(room(state, models(22_000))) == ["b", "c"]
    assert victims(room(state, models(23_000))) == ["a", "b", "c"]


def test_idle_ones_go_before_busy_ones() -> None:
    """Issue: never in-flight ones without drain; a neuron drains, and idle ones need none."""
    busy = loaded("busy", 10_000, last_used=1.0, in_flight=3)
    idle = loaded("idle", 10_000, last_used=2.0)

    assert victims(room(with_replicas(busy, idle), models(10_000))) == ["idle"]
    assert victims(room(with_replicas(busy), models(20_000))) == ["busy"]


def test_the_node_with_the_cheapest_victims_is_chosen() -> None:
    """Issue: preference order; the cheapest eviction comes last, and is the cheapest."""
    held: list[tuple[str, str, dict[str, Any]]] = [
        ("a", "busy", {"last_used": 1.0, "in_flight": 1}),
        ("b", "young", {"last_used": 9.0}),
        ("c", "old", {"last_used": 5.0}),
    ]
    nodes = [
        msgspec.structs.replace(
            gpu_node(name, 24_000),
            replicas={ModelId(model): loaded(model, 20_000, node=name, **fields)},
        )
        for name, model, fields in held
    ]

    assert victims(room(fleet(*nodes), models())) == ["old"]


@pytest.mark.parametrize(
    ("model", "fields", "gives_way"),
    [
        (profile("x"), {}, True),
        (profile("x", pinned_on=("n",)), {}, False),
        (profile("x", residency_priority=100), {}, True),
        (profile("x", residency_priority=101), {}, False),
        (profile("x"), {"status": ReplicaStatus.LOADING}, False),
        (profile("x"), {"status": ReplicaStatus.UNLOADING}, False),
        (profile("x"), {"status": ReplicaStatus.POISONED}, False),
        (profile("x"), {"vram_used_bytes": 0}, False),
        (profile("x"), {"id": ReplicaId(node=NODE, model=ModelId("strange"))}, False),
    ],
)
def test_who_may_give_way(model: Profile, fields: Mapping[str, Any], gives_way: bool) -> None:
    """Issue: pinned never; residency_priority respected, equals may displace each other."""
    replica = msgspec.structs.replace(loaded("x", 20_000), **fields)
    step = room(with_replicas(replica), models(x=model))

    assert isinstance(step, Evict) is gives_way


def test_a_pinned_model_may_push_out_what_is_of_lower_priority() -> None:
    """Contract: pinned default 1000."""
    wanted = profile("wanted", vram_mb=20_000, pinned_on=("n",))
    high = profile("x", residency_priority=999)
    catalogue = Catalogue(profiles={WANTED: wanted, ModelId("x"): high})

    assert victims(room(with_replicas(loaded("x", 20_000)), catalogue)) == ["x"]
    assert (priority_of(wanted), priority_of(profile("y"))) == (1000, 100)


def test_a_model_that_came_just_now_stays_for_a_while() -> None:
    """Issue: min-residency window against thrash."""
    state = with_replicas(loaded("x", 20_000))
    state = with_residents(state, {ModelId("x"): Resident(since=NOW - 10, used=NOW)})
    policy = EvictionPolicy(min_residency_s=30.0)

    early = room(state, models(), policy=policy)
    late = make_room(state, models(), WANTED, NOW + 20, policy=policy)
    decision = route(state, models(), WANTED, hints=RouteHints(), in_flight={}, now=NOW)

    assert isinstance(early, Hold)
    assert early.retry_at == NOW + 20
    assert isinstance(late, Evict)
    assert isinstance(decision, Wait)


def test_an_upstream_is_never_unloaded() -> None:
    """Ours: there is no neuron that could be told to."""
    state = with_replicas(loaded("x", 1_000))
    upstream = msgspec.structs.replace(state.nodes[NODE], facts=None)
    state = msgspec.structs.replace(state, nodes={NODE: upstream})
    policy = EvictionPolicy(idle_unload_s=1.0)

    assert idle(state, models(), policy) == []


def test_room_that_is_being_made_is_kept_for_whom_it_is_made() -> None:
    """Ours: else the next model takes it, and somebody has given way for nothing."""
    state = with_replicas(loaded("x", 10_000))
    other = profile("other", vram_mb=12_000)
    (swap, late) = plan(state, models(20_000, other=other), [WANTED, other.id], NOW)

    assert isinstance(swap, Evict)
    assert isinstance(late, Hold)
    state = with_swap(state, WANTED, swap.swap)
    assert free_bytes(state, models(20_000), state.nodes[NODE]) == {0: 4_000 * MIB}
    assert isinstance(
        route(state, models(), WANTED, hints=RouteHints(), in_flight={}, now=NOW), Wait
    )


def test_the_load_follows_when_the_memory_is_seen_to_be_free() -> None:
    """Architecture: the load follows when a report shows the room."""
    state = with_replicas(loaded("x", 20_000))
    (step,) = plan(state, models(), [WANTED], NOW)
    assert isinstance(step, Evict)
    state = with_swap(state, WANTED, step.swap)
    assert plan(state, models(), [WANTED], NOW) == ()

    state = with_report(state, NODE, NodeReport(replicas=()), NOW + 1)
    state = without_swap(state, WANTED)
    (load,) = plan(state, models(), [WANTED], NOW + 1)

    assert isinstance(load, Load)
    assert state.unloads == frozenset()


def test_a_big_model_gets_its_turn_among_small_ones() -> None:
    """Issue: bounded wait for every caller; small ones must not swap past it for ever."""
    small = {name: profile(name, vram_mb=10_000) for name in "abc"}
    catalogue = models(20_000, **small)
    policy, waits = EvictionPolicy(min_residency_s=30.0), [WANTED, *map(ModelId, "abc")]
    state, now = with_replicas(loaded("a", 10_000), loaded("b", 10_000)), 0.0
    ages = {"a": 0.0, "b": -15.0}
    residents = {ModelId(name): Resident(since=since, used=since) for name, since in ages.items()}
    state = with_residents(state, residents)

    early = plan(state, catalogue, waits, now + 16, policy=policy)
    in_turn = plan(state, catalogue, waits, now + 31, policy=policy)

    assert {type(step) for step in early} == {Hold}
    assert victims(in_turn[0]) == ["b", "a"]


def test_a_load_that_hangs_keeps_the_node_from_nobody() -> None:
    """Ours: a wait that may never end gives no right to the room beside it."""
    hanging = msgspec.structs.replace(loaded("x", 10_000), status=ReplicaStatus.LOADING)
    small = profile("small", vram_mb=4_000)
    steps = plan(with_replicas(hanging), models(20_000, s=small), [WANTED, small.id], NOW)

    assert [type(step) for step in steps] == [Hold, Load]


def test_the_longest_wait_is_planned_first() -> None:
    """Ours: names must not decide who gets the room."""
    state = with_replicas()
    first, second = profile("z", vram_mb=20_000), profile("a", vram_mb=20_000)
    steps = plan(state, models(z=first, a=second), [first.id, second.id, first.id], NOW)

    assert [type(step) for step in steps] == [Load, Hold]
    assert isinstance(steps[0], Load)
    assert steps[0].replica.model == "z"


def test_what_nobody_uses_is_unloaded_after_its_time() -> None:
    """Issue: `idle_unload_s`, global and per model."""
    used = {"fresh": NOW - 5, "idle": NOW - 100, "own": NOW - 20, "busy": 0.0, "pinned": 0.0}
    state = with_replicas(
        *(loaded(name, 100, in_flight=int(name == "busy")) for name in (*used, "strange"))
    )
    residents = {
        ModelId(name): Resident(since=0.0, used=at) for name, at in {**used, "strange": 0.0}.items()
    }
    state = with_residents(state, residents)
    profiles = [profile("fresh"), profile("idle"), profile("own", idle_unload_s=10.0)]
    profiles += [profile("busy"), profile("pinned", pinned_on=("n",))]
    catalogue = Catalogue(profiles={entry.id: entry for entry in profiles})
    policy = EvictionPolicy(idle_unload_s=60.0)

    steps = plan(state, catalogue, [], NOW, policy=policy)
    wanted = idle(state, catalogue, policy, "idle")
    never = idle(state, Catalogue(), policy)

    assert [step.replica.model for step in steps if isinstance(step, Retire)] == ["idle", "own"]
    assert wanted == ["own"]
    assert never == []


def test_reports_tell_since_when_a_replica_is_there_and_when_it_was_used() -> None:
    """Ours: on the gateway's own clock."""
    state = fleet(gpu_node("n", 24_000))
    key = ModelId("x")
    told: list[dict[str, Any]] = [{}, {}, {"in_flight": 1}, {}, {"last_used": 5.0}]
    told += [{"last_used": 5.0}, {"queued": 1}]
    seen = []
    for at, fields in enumerate(told):
        report = NodeReport(replicas=(loaded("x", 1, **fields),))
        state = with_report(state, NODE, report, float(at))
        seen.append(state.nodes[NODE].residents[key])
    state = with_report(state, NODE, NodeReport(replicas=()), 9.0)

    assert [resident.used for resident in seen] == [0, 0, 2, 2, 4, 4, 6]
    assert {resident.since for resident in seen} == {0}
    assert state.nodes[NODE].residents == {}


def test_a_use_that_is_told_late_is_not_the_latest() -> None:
    """Ours: reports come late, and not in the order of the uses; the node's clock knows that."""
    state = fleet(gpu_node("n", 24_000))
    told: list[tuple[float | None, float | None]] = [(None, None), (None, 6.0), (5.0, 6.0)]
    told += [(None, 6.0), (5.0, 6.0), (7.0, 6.0), (7.0, 9.0), (8.0, 9.5)]
    seen = []
    for at, (x, y) in enumerate(told):
        replicas = (loaded("x", 1, last_used=x), loaded("y", 1, last_used=y))
        state = with_report(state, NODE, NodeReport(replicas=replicas), float(at))
        residents = state.nodes[NODE].residents
        seen.append((residents[ModelId("x")].used, residents[ModelId("y")].used))

    assert seen == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 1), (5, 1), (5, 6), (7, 7)]


def test_a_rate_fades() -> None:
    """Ours: a burst of yesterday is no reason to stay."""
    rate = None
    for at in range(60):
        rate = counted(rate, float(at))

    assert rate is not None
    assert per_second(rate, 59.0) == pytest.approx(60 / MEMORY_S, rel=0.1)
    assert per_second(rate, 59.0 + MEMORY_S) == pytest.approx(
        per_second(rate, 59.0) / 2.718, rel=0.01
    )
