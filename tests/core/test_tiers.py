"""Between awake and unloaded: who sleeps, who is woken, and whose place the host has."""

from typing import Any

import msgspec
import pytest

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import with_command, with_report, with_sleepless, with_swap
from cortex_core.fleet.state import FleetState, Resident, Way
from cortex_core.harness import Capabilities
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.placement.case import Case
from cortex_core.placement.fit import free_bytes
from cortex_core.placement.host import host_free_bytes
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import EvictionPolicy, Strategy
from cortex_core.placement.steps import Evict, Hold, Load, Retire, Step, Wake
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.units import MIB
from tests.core.test_evict import (
    NODE,
    NOW,
    WANTED,
    by,
    loaded,
    models,
    profile,
    room,
    with_replicas,
)
from tests.core.test_placement import fleet, gpu_node

SLEEPY = Capabilities(sleep=True)


def sleepy(model: str, size_mb: int, **fields: Any) -> Replica:
    """Return a loaded replica that can sleep."""
    return loaded(model, size_mb, capabilities=SLEEPY, **fields)


def asleep(model: str, size_mb: int, **fields: Any) -> Replica:
    """Return a replica that sleeps with its weights in host memory."""
    fields = {"sleep_level": 1, "host_used_bytes": size_mb * MIB, **fields}
    replica = sleepy(model, size_mb, **fields)
    return msgspec.structs.replace(replica, status=ReplicaStatus.SLEEPING, vram_used_bytes=None)


def with_host(budget_mb: int | None, *replicas: Replica, **more: Any) -> FleetState:
    """Return one node whose host has that much memory for sleepers."""
    state = with_replicas(*replicas, **more)
    budget = None if budget_mb is None else budget_mb * MIB
    node = msgspec.structs.replace(state.nodes[NODE], sleep_budget_bytes=budget)
    return msgspec.structs.replace(state, nodes={NODE: node})


def used(state: FleetState, **at: float) -> FleetState:
    """Return the fleet with models that were used at these times."""
    node = state.nodes[NODE]
    known = {ModelId(name): Resident(since=0.0, used=when) for name, when in at.items()}
    node = msgspec.structs.replace(node, residents={**node.residents, **known})
    return msgspec.structs.replace(state, nodes={NODE: node})


def ways(step: Step) -> dict[str, Way]:
    assert isinstance(step, Evict), step
    return {victim.replica.model: victim.way for victim in step.swap.victims}


@pytest.mark.parametrize("strategy", Strategy)
def test_who_gives_way_sleeps_where_the_host_has_room(strategy: Strategy) -> None:
    """Issue: awake, then sleep level 1, before unloaded."""
    rates = {ModelId("x"): 1.0}
    roomy = with_host(20_000, sleepy("x", 20_000, load_s=60.0, wake_s=1.0))
    full = with_host(19_999, sleepy("x", 20_000, load_s=60.0))

    assert ways(room(roomy, models(), policy=by(strategy), rates=rates)) == {"x": Way.SLEEP_1}
    assert ways(room(full, models(), policy=by(strategy), rates=rates)) == {"x": Way.UNLOAD}


@pytest.mark.parametrize(
    ("budget_mb", "capabilities"),
    [(None, SLEEPY), (64_000, Capabilities(sleep=False)), (64_000, None)],
)
def test_what_cannot_sleep_is_unloaded(
    budget_mb: int | None, capabilities: Capabilities | None
) -> None:
    """Issue: CPU builds may not sleep: fall back to unload."""
    replica = msgspec.structs.replace(loaded("x", 20_000), capabilities=capabilities)

    assert ways(room(with_host(budget_mb, replica), models())) == {"x": Way.UNLOAD}


def test_a_refusal_to_sleep_is_remembered_for_the_life_of_the_neuron() -> None:
    """Ours: nobody is asked again and again."""
    state = with_host(64_000, sleepy("x", 20_000))
    told = with_sleepless(state, ReplicaId(node=NODE, model=ModelId("x")))

    assert ways(room(state, models())) == {"x": Way.SLEEP_1}
    assert ways(room(told, models())) == {"x": Way.UNLOAD}
    assert with_sleepless(state, ReplicaId(node=NodeName("gone"), model=WANTED)) is state


def test_level_2_is_taken_where_it_is_known_to_be_quicker_than_a_load() -> None:
    """Ours: without room in the host, weights are dropped only if the engine is worth keeping."""
    slow = with_host(0, sleepy("x", 20_000, load_s=90.0, wake_s=2.0))
    quick = with_host(0, sleepy("x", 20_000, load_s=15.0, wake_s=2.0))
    unknown = with_host(0, sleepy("x", 20_000))

    assert ways(room(slow, models())) == {"x": Way.SLEEP_2}
    # 20000 MiB are read in 19.5 s, whatever a wake from host memory takes.
    assert ways(room(quick, models())) == {"x": Way.UNLOAD}
    assert ways(room(unknown, models())) == {"x": Way.UNLOAD}


def test_sleepers_of_less_value_make_place_in_the_host() -> None:
    """Issue: host RAM is a budget too; the least valuable go first, and no more than needed."""
    state = with_host(
        30_000, sleepy("x", 20_000), asleep("a", 10_000), asleep("b", 10_000), asleep("c", 10_000)
    )
    state = used(state, x=500.0, a=300.0, b=100.0, c=200.0)
    step = room(state, models())

    assert list(ways(step).items()) == [
        ("b", Way.UNLOAD),
        ("c", Way.UNLOAD),
        ("x", Way.SLEEP_1),
    ]


def test_no_sleeper_makes_place_for_what_is_worth_less() -> None:
    """Issue: sleepers of least value."""
    state = with_host(20_000, sleepy("x", 20_000), asleep("a", 20_000))
    older, younger = used(state, x=100.0, a=200.0), used(state, x=200.0, a=100.0)

    assert ways(room(older, models())) == {"x": Way.UNLOAD}
    assert ways(room(younger, models())) == {"a": Way.UNLOAD, "x": Way.SLEEP_1}


def test_cost_weighs_what_is_lost_with_a_sleeper() -> None:
    """Issue: expected seconds lost."""
    x = sleepy("x", 20_000, load_s=60.0, wake_s=1.0)
    a = asleep("a", 20_000, load_s=60.0, wake_s=1.0)
    state, often, rare = with_host(20_000, x, a), 1.0, 0.0001

    def told(x_rate: float, a_rate: float) -> dict[str, Way]:
        rates = {ModelId("x"): x_rate, ModelId("a"): a_rate}
        return ways(room(state, models(), policy=by(Strategy.COST), rates=rates))

    assert told(often, rare) == {"a": Way.UNLOAD, "x": Way.SLEEP_1}
    # The sleeper stays; an engine without its weights is quicker back than no engine.
    assert told(rare, often) == {"x": Way.SLEEP_2}


@pytest.mark.parametrize(
    "fields", [{"is_pinned": True}, {"id": ReplicaId(node=NODE, model=ModelId("strange"))}]
)
def test_pinned_and_strange_sleepers_stay(fields: dict[str, Any]) -> None:
    """Issue: pinned never; what is in no catalogue could not be brought back."""
    sleeper = msgspec.structs.replace(asleep("a", 20_000), **fields)
    state = used(with_host(20_000, sleepy("x", 20_000), sleeper), x=500.0)

    assert ways(room(state, models())) == {"x": Way.UNLOAD}


def test_a_sleeper_that_callers_wait_for_stays() -> None:
    """Ours: it is about to be woken."""
    state = with_host(20_000, sleepy("x", 20_000), asleep("a", 20_000), sizes_mb=(24_000, 24_000))
    state = used(state, x=500.0, a=1.0)
    steps = plan(state, models(20_000, a=profile("a", vram_mb=20_000)), [WANTED, ModelId("a")], NOW)

    assert all("a" not in ways(step) for step in steps if isinstance(step, Evict))


def test_a_pinned_replica_never_gives_way() -> None:
    """Issue: pinned never, as operators pin them."""
    held = room(with_replicas(loaded("x", 20_000, is_pinned=True)), models())

    assert isinstance(held, Hold)
    assert held.retry_at is None


def test_what_sleeps_is_woken_where_it_fits() -> None:
    """Architecture: waking before loading, even where more is free elsewhere."""
    state = with_host(64_000, asleep("wanted", 20_000))
    empty = gpu_node("empty", 48_000)
    state = msgspec.structs.replace(state, nodes={**state.nodes, empty.name: empty})
    (step,) = plan(state, models(), [WANTED], NOW)

    assert isinstance(step, Wake)
    assert step.replica.node == NODE
    assert step.command.is_wake
    state = with_command(state, step.replica, step.command)
    assert plan(state, models(), [WANTED], NOW) == ()
    assert free_bytes(state, models(), state.nodes[NODE]) == {0: 4_000 * MIB}


def test_a_load_into_free_memory_is_better_than_a_wake_for_which_others_give_way() -> None:
    """Architecture: preference order."""
    state = with_host(64_000, asleep("wanted", 20_000), loaded("x", 20_000))
    alone = room(state, models())
    empty = gpu_node("empty", 48_000)
    both = msgspec.structs.replace(state, nodes={**state.nodes, empty.name: empty})

    assert ways(alone) == {"x": Way.UNLOAD}
    assert isinstance(room(both, models()), Load)


@pytest.mark.parametrize("strategy", Strategy)
def test_making_room_for_a_wake_is_cheaper_than_for_a_load(strategy: Strategy) -> None:
    """Issue: sleeping preferred where it wins."""
    here = {ModelId("wanted"): asleep("wanted", 20_000), ModelId("x"): loaded("x", 20_000)}
    there = {ModelId("y"): loaded("y", 20_000, node="a", last_used=0.0)}
    nodes = [
        msgspec.structs.replace(gpu_node("n", 24_000), replicas=here),
        msgspec.structs.replace(gpu_node("a", 24_000), replicas=there),
    ]
    step = room(fleet(*nodes), models(y=profile("y")), policy=by(strategy))

    assert isinstance(step, Evict)
    assert step.swap.node == NODE


def test_a_wake_needs_the_devices_on_which_it_fell_asleep() -> None:
    """Ours: an engine that sleeps cannot move."""
    sleeper = asleep("wanted", 20_000, device=1)
    state = with_host(64_000, sleeper, loaded("x", 20_000, device=1), sizes_mb=(24_000, 24_000))
    step = room(state, models())

    assert isinstance(step, Evict)
    assert step.swap.devices == (1,)
    assert [victim.model for victim in step.swap.replicas] == ["x"]


def test_what_is_promised_to_who_falls_asleep_is_nobody_elses() -> None:
    """Ours: the host's memory is a ledger like that of a device."""
    state = with_host(30_000, sleepy("x", 20_000), sleepy("y", 3_000))
    step = room(state, models(y=profile("y")))
    assert isinstance(step, Evict)
    noted = with_swap(state, WANTED, step.swap)

    case = Case(state=noted, catalogue=models(), now=NOW)
    assert host_free_bytes(case, noted.nodes[NODE]) == 10_000 * MIB
    report = NodeReport(
        replicas=(asleep("x", 20_000), sleepy("y", 3_000)), sleep_budget_bytes=30_000 * MIB
    )
    after = with_report(noted, NODE, report, NOW + 1)
    case = msgspec.structs.replace(case, state=after)
    assert host_free_bytes(case, after.nodes[NODE]) == 10_000 * MIB


def test_a_wake_begins_a_turn() -> None:
    """Issue: min-residency window against thrash; sleep is no absence, a wake is an arrival."""
    state = with_replicas(loaded("x", 20_000))
    seen = []
    told = [loaded("x", 1), asleep("x", 1), asleep("x", 1), loaded("x", 1)]
    for at, replica in enumerate(told, start=1):
        state = with_report(state, NODE, NodeReport(replicas=(replica,)), float(at))
        seen.append(state.nodes[NODE].residents[ModelId("x")].since)

    assert seen == [0.0, 0.0, 0.0, 4.0]


def test_a_cordoned_node_wakes_what_sleeps_there_and_takes_nothing_new() -> None:
    """Ours: what is there serves on, and a sleeper is there."""
    state = with_host(64_000, asleep("wanted", 10_000))
    node = msgspec.structs.replace(state.nodes[NODE], is_cordoned=True)
    closed = msgspec.structs.replace(state, nodes={NODE: node})
    other = profile("other", vram_mb=1_000)
    wake, held = plan(closed, models(10_000, other=other), [WANTED, other.id], NOW)

    assert isinstance(wake, Wake)
    assert isinstance(held, Hold)
    assert "cordoned" in held.why


def test_sleepers_that_nobody_uses_are_unloaded_too() -> None:
    """Issue: `idle_unload_s` gives back memory that nobody uses, also the host's."""
    state = with_host(64_000, asleep("a", 10_000), asleep("b", 10_000, is_pinned=True))
    state = used(state, a=0.0, b=0.0)
    steps = plan(state, models(), [], NOW, policy=EvictionPolicy(idle_unload_s=60.0))

    assert [step.replica.model for step in steps if isinstance(step, Retire)] == ["a"]


def test_a_catalogue_without_the_sleeper_wakes_nobody() -> None:
    """Ours: only whoever loaded it may have it back."""
    (held,) = plan(with_host(64_000, asleep("wanted", 1)), Catalogue(), [WANTED], NOW)

    assert isinstance(held, Hold)
