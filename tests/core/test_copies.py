"""How many copies there are of a model, where, and when one more is bought."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile, Replicas
from cortex_core.fleet.reducers import with_command, with_swap
from cortex_core.fleet.state import FleetState, NodeHealth, NodeState, Resident
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.copies import Queue, weigh_copy
from cortex_core.placement.plan import open_wishes, plan
from cortex_core.placement.policy import HORIZON_S, EvictionPolicy
from cortex_core.placement.steps import Evict, Hold, Load, Retire, Step
from cortex_core.replica import Replica
from tests.core.test_evict import NOW, loaded, profile
from tests.core.test_placement import fleet, gpu_node

MODEL = ModelId("m")


def node(name: str, *replicas: Replica, size_mb: int = 24_000) -> NodeState:
    """Return a node that has had `replicas` for long."""
    return msgspec.structs.replace(
        gpu_node(name, size_mb),
        replicas={replica.id.model: replica for replica in replicas},
        residents={replica.id.model: Resident(since=0.0, used=0.0) for replica in replicas},
    )


def on(name: str, model: str = "m", size_mb: int = 10_000, **fields: Any) -> Replica:
    return loaded(model, size_mb, node=name, **fields)


def catalogue(*more: Profile, low: int = 0, high: int = 1, size_mb: int = 10_000) -> Catalogue:
    one = profile("m", vram_mb=size_mb, replicas=Replicas(min=low, max=high))
    return Catalogue(profiles={entry.id: entry for entry in (one, *more)})


def done(state: FleetState, steps: tuple[Step, ...]) -> FleetState:
    for step in steps:
        if isinstance(step, Load):
            state = with_command(state, step.replica, step.command)
        elif isinstance(step, Evict):
            state = with_swap(state, step.model, step.swap)
    return state


def targets(steps: tuple[Step, ...]) -> list[str]:
    return [step.replica.node for step in steps if isinstance(step, Load)]


def test_copies_are_kept_although_nobody_asks() -> None:
    """Issue: replicas = {min, max}; each copy on a node of its own."""
    state = fleet(node("a", on("a")), node("b"), node("c"))
    wanted = catalogue(low=2, high=2)
    steps = plan(state, wanted, [], NOW)

    assert targets(steps) == ["b"]
    assert plan(done(state, steps), wanted, [], NOW) == ()


def test_a_copy_that_is_lost_comes_back_elsewhere() -> None:
    """Issue: kept; a node that is down keeps nothing for anybody."""
    down = msgspec.structs.replace(node("a", on("a")), health=NodeHealth.DOWN)

    assert targets(plan(fleet(down, node("b")), catalogue(low=1), [], NOW)) == ["b"]


def test_two_models_that_are_to_be_kept_do_not_push_each_other_out() -> None:
    """Ours: equals may displace each other, but not below what is kept."""
    rival = profile("rival", vram_mb=20_000, replicas=Replicas(min=1))
    state = fleet(node("a", on("a", size_mb=20_000)))
    equal = plan(state, catalogue(rival, low=1, size_mb=20_000), [], NOW)
    higher = msgspec.structs.replace(rival, residency_priority=200)
    steps = plan(state, catalogue(higher, low=1, size_mb=20_000), [], NOW)

    assert equal == ()
    assert [type(step) for step in steps] == [Evict]


def test_a_copy_above_those_that_are_kept_goes_first() -> None:
    """Issue: surplus copies are the first victims, however lately they were used."""
    other = profile("other")
    wanted = profile("wanted", vram_mb=20_000)
    state = fleet(
        node("a", on("a", size_mb=20_000)),
        node("b", on("b", size_mb=20_000)),
        node("c", on("c", "other", 20_000)),
    )
    for name in ("a", "b"):
        there = state.nodes[NodeName(name)]
        used = {MODEL: Resident(since=0.0, used=NOW)}
        there = msgspec.structs.replace(there, residents=used)
        state = msgspec.structs.replace(state, nodes={**state.nodes, there.name: there})
    (step,) = plan(state, catalogue(other, wanted, high=2), [wanted.id], NOW)

    assert isinstance(step, Evict)
    assert step.swap.node == "a"


def test_what_is_kept_is_not_unloaded_for_want_of_use() -> None:
    """Issue: `idle_unload_s` gives back what nobody needs."""
    state = fleet(node("a", on("a")), node("b", on("b")))
    policy = EvictionPolicy(idle_unload_s=10.0)
    kept = plan(state, catalogue(low=1, high=2), [], NOW, policy=policy)
    loose = plan(state, catalogue(high=2), [], NOW, policy=policy)

    assert len([step for step in kept if isinstance(step, Retire)]) == 1
    assert len([step for step in loose if isinstance(step, Retire)]) == 2


def bought(
    state: FleetState, known: Catalogue, waiting: Mapping[ModelId, int], **more: Any
) -> list[str]:
    return targets(plan(state, known, [], NOW, waiting=waiting, **more))


def test_a_copy_is_bought_for_a_long_queue_and_not_for_a_short_one() -> None:
    """Issue: when the queue-seconds it saves outweigh what it displaces."""
    state = fleet(node("a", on("a", in_flight=4, load_s=20.0)), node("b"))
    many, few = {MODEL: 100}, {MODEL: 1}

    assert bought(state, catalogue(high=2), many) == ["b"]
    assert bought(state, catalogue(high=2), few) == []
    assert bought(state, catalogue(high=1), many) == []
    quick = {MODEL: 0.01}
    assert bought(state, catalogue(high=2), {MODEL: 10}, request_times=quick) == []


def test_one_copy_is_bought_at_a_time() -> None:
    """Ours: the next one is weighed when this one serves."""
    state = fleet(node("a", on("a", in_flight=4)), node("b"), node("c"))
    known, many = catalogue(high=3), {MODEL: 500}
    steps = plan(state, known, [], NOW, waiting=many)

    assert len(targets(steps)) == 1
    assert plan(done(state, steps), known, [], NOW, waiting=many) == ()


@pytest.mark.parametrize(("rate", "is_worth_it"), [(0.0, True), (10.0, False)])
def test_what_would_be_displaced_counts(rate: float, is_worth_it: bool) -> None:
    """Issue: what it displaces."""
    other = profile("other")
    state = fleet(
        node("a", on("a", in_flight=4, load_s=20.0)),
        node("b", on("b", "other", 20_000, load_s=3000.0)),
    )
    steps = plan(
        state,
        catalogue(other, high=2),
        [],
        NOW,
        waiting={MODEL: 20},
        rates={other.id: rate},
    )

    assert any(isinstance(step, Evict) for step in steps) is is_worth_it
    if is_worth_it:
        assert all(step.swap.is_bound for step in steps if isinstance(step, Evict))


queues = st.builds(
    Queue,
    waiting=st.integers(0, 10_000),
    in_flight=st.integers(0, 256),
    arrivals_per_s=st.floats(0, 1000),
    request_s=st.floats(0.01, 1000),
)


@given(queues, st.integers(1, 8), st.floats(0, 2 * HORIZON_S), st.floats(0, 1e6))
def test_a_purchase_saves_what_can_be_waited_and_no_more(
    queue: Queue, copies: int, arrival_s: float, lost_s: float
) -> None:
    """Ours: one more copy makes nobody wait longer, and later ones save less."""
    purchase = weigh_copy(queue, copies, arrival_s, lost_s)
    all_waiting = queue.waiting * HORIZON_S + queue.arrivals_per_s * HORIZON_S**2 / 2

    assert -1e-6 * (1 + all_waiting) <= purchase.saved_s <= all_waiting * (1 + 1e-9)
    assert purchase.cost_s >= lost_s
    later = weigh_copy(queue, copies, arrival_s + 10.0, lost_s)
    assert later.saved_s <= purchase.saved_s + 1e-6 * (1 + all_waiting)
    if not queue.waiting and not queue.arrivals_per_s:
        assert not purchase.is_worth_it


def test_a_wish_is_for_that_very_node() -> None:
    """Issue: load with a node; also when another one serves the model."""
    state = fleet(node("a", on("a")), node("b"), node("c", size_mb=48_000))
    wish = ReplicaId(node=NodeName("b"), model=MODEL)
    steps = plan(state, catalogue(), [], NOW, wishes=[wish])

    assert targets(steps) == ["b"]
    assert open_wishes(state, [wish], steps) == ()
    assert plan(done(state, steps), catalogue(), [], NOW, wishes=[wish]) == ()


def test_a_wish_that_time_may_grant_is_kept() -> None:
    """Ours: others are there for a while; a device that is too small is no matter of time."""
    young = Resident(since=NOW - 10, used=NOW)
    there = msgspec.structs.replace(
        node("b", on("b", "other", 20_000)), residents={ModelId("other"): young}
    )
    state = fleet(there, node("small", size_mb=4_000))
    known = catalogue(profile("other"))
    wishes = [ReplicaId(node=NodeName(name), model=MODEL) for name in ("b", "small", "none")]
    steps = plan(state, known, [], NOW, wishes=wishes)

    assert [type(step) for step in steps] == [Hold, Hold]
    assert open_wishes(state, wishes, steps) == (wishes[0],)
