"""Adapters in plans: on an engine of their base, and after it where there is none."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile, Replicas
from cortex_core.fleet.reducers import with_command, with_load_failure, with_swap, with_unloads
from cortex_core.fleet.state import FleetState, NodeState, Resident, Way
from cortex_core.harness import Capabilities
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.placement.adapters import places_left
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.idle import idle_replicas
from cortex_core.placement.place import Limits, find_room
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import EvictionPolicy, Strategy
from cortex_core.placement.steps import Evict, Hold, Load, Retire, Step, Wake
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.route import Refuse, RouteHints, Serve, Wait, route
from cortex_core.units import MIB
from tests.core.test_placement import fleet, gpu_node

NOW = 1000.0
BASE, A, B, C, OTHER = (ModelId(name) for name in ("base", "a", "b", "c", "other"))
ONE, TWO = NodeName("one"), NodeName("two")
POLICY = EvictionPolicy(min_residency_s=30.0)


def adapter(model: ModelId, **fields: Any) -> Profile:
    return Profile(id=model, harness="simulated", vram_mb=0, base=BASE, **fields)


def catalogue(places: int = 1, *adapters: Profile, **of_base: Any) -> Catalogue:
    """Return the base, another model as large as it, and adapters, by default three."""
    base = Profile(
        id=BASE,
        harness="simulated",
        vram_mb=16_000,
        engine={"enable_lora": True, "max_loras": places, "max_model_len": 4096},
        **of_base,
    )
    other = Profile(id=OTHER, harness="simulated", vram_mb=16_000)
    known = (base, other, *(adapters or (adapter(A), adapter(B), adapter(C))))
    return Catalogue(profiles={profile.id: profile for profile in known})


def there(model: ModelId, node: NodeName = ONE, **fields: Any) -> Replica:
    replica = Replica(
        id=ReplicaId(node=node, model=model),
        status=ReplicaStatus.LOADED,
        devices=(DeviceIndex(0),),
        vram_used_bytes=16_000 * MIB if model in (BASE, OTHER) else 0,
        base=None if model in (BASE, OTHER) else BASE,
    )
    return msgspec.structs.replace(replica, **fields)


def node(name: NodeName, *replicas: Replica, **used: float) -> NodeState:
    """Return a node that has had these since 0 s, used then or at the time given by model."""
    return msgspec.structs.replace(
        gpu_node(name, 24_000),
        replicas={replica.id.model: replica for replica in replicas},
        residents={
            replica.id.model: Resident(since=0.0, used=used.get(replica.id.model, 0.0))
            for replica in replicas
            if replica.status is ReplicaStatus.LOADED
        },
    )


def case(state: FleetState, known: Catalogue, **fields: Any) -> Case:
    return Case(state=state, catalogue=known, now=NOW, policy=POLICY, **fields)


def step_for(state: FleetState, known: Catalogue, model: ModelId = A) -> Step:
    return find_room(case(state, known), model)


def hold(state: FleetState, known: Catalogue, model: ModelId = A) -> Hold:
    found = step_for(state, known, model)
    assert isinstance(found, Hold)
    return found


def victims(step: Step) -> list[ModelId]:
    assert isinstance(step, Evict)
    assert all(victim.way is Way.UNLOAD for victim in step.swap.victims)
    return [victim.replica.model for victim in step.swap.victims]


def decided(state: FleetState, known: Catalogue, model: ModelId = A) -> Serve | Wait | Refuse:
    return route(state, known, model, hints=RouteHints(), in_flight={}, now=NOW, policy=POLICY)


def test_an_adapter_goes_to_the_node_that_has_its_base_with_most_places() -> None:
    """Ours: told where it lies and nothing of memory, which is its base's."""
    known = catalogue(2, adapter(A, adapter="/adapters/a", max_queue=3), adapter(B))
    state = fleet(node(ONE, there(BASE), there(B)), node(TWO, there(BASE, TWO)))

    step = step_for(state, known)

    assert isinstance(step, Load)
    assert step.replica == ReplicaId(node=TWO, model=A)
    request = step.request
    assert (request.base, request.adapter, request.max_queue) == (BASE, "/adapters/a", 3)
    assert (request.vram_mb, request.devices, request.tensor_parallel) == (None, None, None)
    assert (step.command.devices, step.command.vram_bytes) == ((DeviceIndex(0),), 0)


def test_without_a_base_the_base_comes_first_and_callers_wait() -> None:
    """Issue: that counts as progress for who waits for the adapter."""
    known = catalogue()
    state = fleet(node(ONE), node(TWO))

    first = plan(state, known, (A, BASE), NOW)
    wait = decided(state, known)

    assert [step.replica.model for step in first if isinstance(step, Load)] == [BASE]
    assert isinstance(wait, Wait)
    assert wait.reason == "its base base is about to be loaded on one"
    (step,) = first
    assert isinstance(step, Load)
    coming = with_command(state, step.replica, step.command)
    assert [type(one) for one in plan(coming, known, (A, B), NOW)] == [Hold, Hold]
    assert isinstance(decided(coming, known), Wait)


def test_a_base_that_sleeps_is_woken_for_its_adapter() -> None:
    """Ours: a wake is quicker than a load."""
    asleep = there(BASE, TWO, status=ReplicaStatus.SLEEPING, sleep_level=1)

    step = step_for(fleet(node(ONE), node(TWO, asleep)), catalogue())

    assert isinstance(step, Wake)
    assert step.replica == ReplicaId(node=TWO, model=BASE)


def test_others_give_way_for_the_base_of_an_adapter() -> None:
    """Ours: as urgently as the more urgent of the two."""
    state = fleet(node(ONE, there(OTHER)))
    urgent = catalogue(1, adapter(A, residency_priority=500), residency_priority=50)
    patient = catalogue(1, adapter(A, residency_priority=20), residency_priority=50)

    assert victims(step_for(state, urgent)) == [OTHER]
    assert hold(state, patient).retry_at is None
    refusal = decided(state, patient)
    assert isinstance(refusal, Refuse)
    assert "one: its base base: no room now" in refusal.error.message


def test_the_adapter_that_waits_longest_for_use_gives_its_place() -> None:
    """Issue: of that base, and idle ones first."""
    known = catalogue(2)
    idle = fleet(node(ONE, there(BASE), there(B), there(C), b=20.0, c=10.0))
    busy = fleet(node(ONE, there(BASE), there(B), there(C, in_flight=1), b=20.0, c=10.0))

    assert victims(step_for(idle, known)) == [C]
    assert victims(step_for(busy, known)) == [B]


def test_a_place_is_kept_for_whom_it_was_made() -> None:
    """Ours: nobody else takes it, and nobody gives way twice."""
    known = catalogue()
    state = fleet(node(ONE, there(BASE), there(B)))
    step = step_for(state, known)
    assert isinstance(step, Evict)

    swapping = with_swap(state, A, step.swap)
    empty = msgspec.structs.replace(swapping, nodes={ONE: node(ONE, there(BASE))})

    assert hold(swapping, known, C).retry_at is not None
    assert hold(empty, known, C).retry_at is not None
    assert places_left(case(empty, known), known.profiles[A], empty.nodes[ONE]) == 1


def test_adapters_that_have_just_come_stay_for_a_while() -> None:
    """Ours: two adapters and one place do not take turns with every request."""
    known = catalogue()
    state = fleet(node(ONE, there(BASE), there(B)))
    fresh = {model: Resident(since=NOW - 10, used=NOW - 10) for model in (BASE, B)}
    state = msgspec.structs.replace(
        state, nodes={ONE: msgspec.structs.replace(state.nodes[ONE], residents=fresh)}
    )

    assert hold(state, known).retry_at == NOW + 20
    assert isinstance(decided(state, known), Wait)


@pytest.mark.parametrize(
    ("replica", "profile"),
    [
        (there(B, is_pinned=True), adapter(B)),
        (there(B), adapter(B, pinned_on=(ONE,))),
        (there(B), adapter(B, residency_priority=200)),
        (there(B), adapter(B, replicas=Replicas(min=1))),
    ],
)
def test_neither_a_pinned_nor_a_more_urgent_adapter_gives_way(
    replica: Replica, profile: Profile
) -> None:
    """Issue: pins and priorities carry over, to the base that would take the adapter along."""
    known = catalogue(1, adapter(A), profile)
    state = fleet(node(ONE, there(BASE), replica))

    assert hold(state, known, A).retry_at is None
    assert hold(state, known, OTHER).retry_at is None


def test_a_base_counts_as_used_and_as_busy_with_its_adapters() -> None:
    """Issue: a base with adapters in use is not evicted before what is idle."""
    known = catalogue()
    small = msgspec.structs.replace(known.profiles[OTHER], vram_mb=6_000)
    known = Catalogue(profiles={**known.profiles, OTHER: small, C: _sized(C, 7_000)})
    idle = there(OTHER, vram_used_bytes=7_000 * MIB)

    used = fleet(node(ONE, there(BASE), there(A), idle, other=50.0, a=60.0))
    busy = fleet(node(ONE, there(BASE), there(A, in_flight=1), idle, other=50.0))
    unused = fleet(node(ONE, there(BASE), there(A), idle, other=50.0, a=40.0))

    assert victims(step_for(used, known, C)) == [OTHER]
    assert victims(step_for(busy, known, C)) == [OTHER]
    assert victims(step_for(unused, known, C)) == [BASE]


def test_a_base_stays_while_an_adapter_is_on_its_way_to_it() -> None:
    """Ours: else who waits for the adapter would lose it to whoever waits for the memory."""
    known = catalogue()
    loading = fleet(node(ONE, there(BASE), there(A, status=ReplicaStatus.LOADING)))
    told = fleet(node(ONE, there(BASE)))
    step = step_for(told, known)
    assert isinstance(step, Load)
    told = with_command(told, step.replica, step.command)

    for state in (loading, told):
        assert hold(state, known, OTHER).retry_at is not None
        assert idle_replicas(case(state, _idle_after(known, 1.0))) == ()


def test_a_base_that_is_not_used_goes_after_its_adapters() -> None:
    """Ours: each of them in its own time."""
    known = _idle_after(catalogue(), 500.0)
    both = fleet(node(ONE, there(BASE), there(A)))
    later = fleet(node(ONE, there(BASE), there(A), a=800.0))

    assert [replica.model for replica in idle_replicas(case(both, known))] == [A]
    assert idle_replicas(case(later, known)) == ()
    assert [r.model for r in idle_replicas(case(fleet(node(ONE, there(BASE))), known))] == [BASE]


def test_a_base_that_could_sleep_is_unloaded_while_it_has_adapters() -> None:
    """Ours: neurons put none to sleep under its adapters."""
    able = there(BASE, capabilities=Capabilities(sleep=True))
    here = msgspec.structs.replace(node(ONE, able, there(A)), sleep_budget_bytes=64_000 * MIB)

    assert victims(step_for(fleet(here), catalogue(), OTHER)) == [BASE]


def test_a_base_stays_for_who_waits_for_its_adapter() -> None:
    """Ours: although the adapter cannot be loaded just now, and nobody has used the base."""
    known = _idle_after(catalogue(), 1.0)
    state = fleet(node(ONE, there(BASE)))
    failed = with_load_failure(state, there(A).id, "it is broken", NOW)

    assert [type(step) for step in plan(failed, known, (A,), NOW)] == [Hold]
    assert [type(step) for step in plan(failed, known, (), NOW)] == [Retire]


def test_a_base_that_goes_is_waited_for_and_one_that_failed_is_not() -> None:
    """Ours: an adapter is not loaded onto it, nor refused while it may come back."""
    known = catalogue()
    state = fleet(node(ONE, there(BASE)))
    going = with_unloads(state, [there(BASE).id])
    failed = with_load_failure(fleet(node(ONE)), there(BASE).id, "it is broken", NOW)

    assert isinstance(decided(going, known), Wait)
    assert isinstance(step_for(going, known), Hold)
    refusal = decided(failed, known)
    assert isinstance(refusal, Refuse)
    assert "its base base: the last load failed: it is broken" in refusal.error.message


def test_a_base_has_no_more_copies_for_its_adapters_than_it_may() -> None:
    """Ours: but where none of its copies is where the adapter may be, there is one more."""
    full = fleet(node(ONE, there(BASE), there(B, is_pinned=True)), node(TWO))
    pinned = catalogue(1, adapter(A, pinned_on=(TWO,)), adapter(B))

    assert hold(full, catalogue()).retry_at is None
    copies = step_for(full, catalogue(replicas=Replicas(max=2)))
    moved = step_for(full, pinned)

    for step in (copies, moved):
        assert isinstance(step, Load)
        assert step.replica == ReplicaId(node=TWO, model=BASE)


def test_a_second_copy_of_an_adapter_goes_where_its_base_is() -> None:
    """Ours: and one is planned for at a time."""
    known = catalogue(1, adapter(A, replicas=Replicas(max=2)), replicas=Replicas(max=2))
    state = fleet(node(ONE, there(BASE), there(A)), node(TWO, there(BASE, TWO)))

    (step,) = plan(state, known, (), NOW, waiting={A: 400}, request_times={A: 5.0})

    assert isinstance(step, Load)
    assert step.replica == ReplicaId(node=TWO, model=A)


def test_kept_adapters_come_with_their_base() -> None:
    """Ours: `replicas.min` of an adapter, with nobody asking."""
    known = catalogue(1, adapter(A, replicas=Replicas(min=1)))

    (first,) = plan(fleet(node(ONE)), known, (), NOW)
    (then,) = plan(fleet(node(ONE, there(BASE))), known, (), NOW)

    assert isinstance(first, Load)
    assert isinstance(then, Load)
    assert (first.replica.model, then.replica.model) == (BASE, A)


def test_a_load_on_one_node_brings_the_base_there() -> None:
    """Ours: an operator's `--node`, though another node has the base."""
    state = fleet(node(ONE, there(BASE)), node(TWO))

    step = find_room(case(state, catalogue()), A, Limits(only=TWO))

    assert isinstance(step, Load)
    assert step.replica == ReplicaId(node=TWO, model=BASE)


def _sized(model: ModelId, size_mb: int) -> Profile:
    return Profile(id=model, harness="simulated", vram_mb=size_mb)


def _idle_after(known: Catalogue, idle_s: float) -> Catalogue:
    changed = {
        model: msgspec.structs.replace(profile, idle_unload_s=idle_s)
        for model, profile in known.profiles.items()
    }
    return Catalogue(profiles=changed)


statuses = st.sampled_from([*[ReplicaStatus.LOADED] * 5, *ReplicaStatus])


@st.composite
def crowded(draw: st.DrawFn) -> FleetState:
    """Nodes with a base or another model, and adapters where there is a base."""
    nodes = []
    for name in (ONE, TWO)[: draw(st.integers(1, 2))]:
        main = draw(st.sampled_from([None, BASE, BASE, BASE, OTHER]))
        found = [] if main is None else [there(main, name, status=draw(statuses))]
        for model in draw(st.sets(st.sampled_from([A, B, C]))) if main == BASE else ():
            busy, pinned = draw(st.sampled_from([0, 0, 3])), draw(st.booleans())
            status = draw(statuses)
            found.append(there(model, name, status=status, in_flight=busy, is_pinned=pinned))
        nodes.append(node(name, *found, **{m: draw(st.floats(0, NOW)) for m in (BASE, A, B, C)}))
    return fleet(*nodes)


@given(crowded(), st.lists(st.sampled_from([A, B, C, BASE, OTHER])), st.sampled_from(Strategy))
def test_no_plan_has_an_adapter_without_a_base_or_beyond_the_places(
    state: FleetState, demand: list[ModelId], strategy: Strategy
) -> None:
    """Ours: however full, and a plan that is noted is not made again."""
    known, policy = catalogue(2), EvictionPolicy(strategy=strategy)

    steps = plan(state, known, demand, NOW, policy=policy)

    loads = [step for step in steps if isinstance(step, Load)]
    for step in loads:
        here = state.nodes[step.replica.node]
        if step.request.base is not None:
            assert here.replicas[BASE].is_servable
            coming = [one for one in loads if one.request.base and one.replica.node == here.name]
            others = {one.id.model for one in here.adapters.get(BASE, ())}
            assert len(others | {one.replica.model for one in coming}) <= 2
    for evict in (step for step in steps if isinstance(step, Evict)):
        here = state.nodes[evict.swap.node]
        for victim in evict.swap.replicas:
            going = here.with_adapters(here.replicas[victim.model])
            assert not any(one.is_pinned or one.status in UNDER_WAY for one in going)
    again = plan(_noted(state, steps), known, demand, NOW, policy=policy)
    assert [step for step in again if not isinstance(step, Hold)] == []


def _noted(state: FleetState, steps: tuple[Step, ...]) -> FleetState:
    for step in steps:
        match step:
            case Load(replica=replica, command=command) | Wake(replica=replica, command=command):
                state = with_command(state, replica, command)
            case Evict(model=model, swap=swap):
                state = with_swap(state, model, swap)
            case _:
                pass
    return state
