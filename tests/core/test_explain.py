"""What a request for a model would come to, in words, without anything being done."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import with_command, with_report, with_swap
from cortex_core.fleet.state import FleetState, NodeHealth, Resident
from cortex_core.ids import ModelId
from cortex_core.node import NodeReport
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import NO_RATES, EvictionPolicy
from cortex_core.placement.steps import Evict, Hold, Load
from cortex_core.replica import LoadProgress, ReplicaStatus
from cortex_core.routing.explain import Explanation, Outcome, explain
from cortex_core.routing.route import Refuse, RouteHints, Serve, route
from tests.core.strategies import MODELS, NOW, catalogues, fleets
from tests.core.test_evict import (
    NODE,
    WANTED,
    loaded,
    models,
    profile,
    with_replicas,
    with_residents,
)
from tests.core.test_placement import fleet, gpu_node, make_room

POLICY = EvictionPolicy()


def told(state: FleetState, catalogue: Catalogue, model: ModelId = WANTED) -> Explanation:
    return explain(state, catalogue, model, policy=POLICY, rates=NO_RATES, now=NOW)


def test_a_model_that_is_loaded_is_served() -> None:
    """Issue: where it would go."""
    found = told(with_replicas(loaded("wanted", 20_000)), models())

    assert (found.outcome, found.node, found.expected_s) == (Outcome.SERVE, NODE, 0.0)
    assert found.summary == "wanted on n: it is loaded there"


def test_a_load_is_expected_to_take_what_the_last_one_took() -> None:
    """Issue: expected seconds; by its size where none was measured."""
    state = fleet(gpu_node("n", 24_000))
    guessed = told(state, models(10_240))
    report = NodeReport(replicas=(loaded("wanted", 10_000, load_s=42.0),))
    state = with_report(state, NODE, report, NOW)
    state = with_report(state, NODE, NodeReport(replicas=()), NOW)
    measured = told(state, models(10_240))

    assert (guessed.outcome, guessed.expected_s) == (Outcome.LOAD, 10.0)
    assert "about 10 s, by its size" in guessed.summary
    assert (measured.outcome, measured.expected_s) == (Outcome.LOAD, 42.0)
    assert "42 s, as the last one did" in measured.summary


def test_who_would_give_way_is_named() -> None:
    """Issue: what would be evicted."""
    found = told(with_replicas(loaded("x", 20_000)), models())

    assert (found.outcome, found.node, found.victims) == (Outcome.EVICT, NODE, ("x",))
    assert "others give way (x unloaded)" in found.summary


def test_a_turn_is_waited_for() -> None:
    """Issue: in words."""
    state = with_replicas(loaded("x", 20_000))
    resident = {ModelId("x"): Resident(since=NOW - 10, used=NOW)}
    found = told(with_residents(state, resident), models())

    assert found.outcome is Outcome.WAIT
    assert "others there may give way in 20 s" in found.summary


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"status": ReplicaStatus.LOADING}, "it is loading there"),
        (
            {
                "status": ReplicaStatus.LOADING,
                "progress": LoadProgress(stage="weights", eta_s=7.0),
            },
            "it is loading there, weights",
        ),
        ({"status": ReplicaStatus.UNKNOWN}, "the node is asked again"),
    ],
)
def test_what_is_under_way_is_told(fields: dict[str, Any], said: str) -> None:
    """Issue: in words."""
    replica = msgspec.structs.replace(loaded("wanted", 20_000), **fields)
    found = told(with_replicas(replica), models())

    assert found.outcome is Outcome.COMING
    assert said in found.summary


@pytest.mark.parametrize(("age_s", "left_s"), [(0.0, 10.0), (4.0, 6.0), (60.0, 0.0)])
def test_a_load_that_was_sent_is_reckoned_from_then(age_s: float, left_s: float) -> None:
    """Issue: an honest Retry-After, although the load itself does not say."""
    state = fleet(gpu_node("n", 24_000))
    (load,) = plan(state, models(10_240), [WANTED], NOW)
    assert isinstance(load, Load)
    command = msgspec.structs.replace(load.command, sent_at=NOW - age_s)
    sent = with_command(state, load.replica, command)
    loading = msgspec.structs.replace(loaded("wanted", 10_240), status=ReplicaStatus.LOADING)
    shown = with_report(sent, NODE, NodeReport(replicas=(loading,)), NOW)

    for known in (sent, shown):
        found = told(known, models(10_240))
        assert (found.outcome, found.expected_s) == (Outcome.COMING, left_s)


def test_another_node_is_better_than_one_that_unloads_it_just_now() -> None:
    """Ours: as the plan sees it."""
    leaving = msgspec.structs.replace(loaded("wanted", 20_000), status=ReplicaStatus.UNLOADING)
    alone = with_replicas(leaving)
    empty = gpu_node("other", 24_000)
    both = msgspec.structs.replace(alone, nodes={**alone.nodes, empty.name: empty})

    assert told(alone, models()).outcome is Outcome.WAIT
    assert (told(both, models()).outcome, told(both, models()).node) == (Outcome.LOAD, "other")


def test_a_gateway_that_has_just_started_waits_for_its_nodes() -> None:
    """Ours: as requests do."""
    unseen = msgspec.structs.replace(gpu_node("n", 24_000), health=NodeHealth.UNSEEN, facts=None)

    assert told(fleet(unseen), models()).outcome is Outcome.WAIT


def test_what_was_sent_is_under_way() -> None:
    """Ours: commands that are noted are told like what they lead to."""
    load = plan(fleet(gpu_node("n", 24_000)), models(), [WANTED], NOW)[0]
    assert isinstance(load, Load)
    sent = with_command(fleet(gpu_node("n", 24_000)), load.replica, load.command)
    state = with_replicas(loaded("x", 20_000))
    evict = plan(state, models(), [WANTED], NOW)[0]
    assert isinstance(evict, Evict)
    swapping = with_swap(state, WANTED, evict.swap)

    assert "about to be loaded" in told(sent, models()).summary
    assert "room is being made" in told(swapping, models()).summary


def test_every_node_says_why_it_cannot() -> None:
    """Issue: why it cannot run, per node, in words."""
    down = msgspec.structs.replace(gpu_node("down", 48_000), health=NodeHealth.DOWN)
    pinned = msgspec.structs.replace(
        gpu_node("full", 24_000),
        replicas={ModelId("x"): loaded("x", 20_000, node="full")},
    )
    state = fleet(gpu_node("small", 8_000), down, pinned)
    found = told(state, models(x=profile("x", pinned_on=("full",))))
    reasons = {str(outlook.node): outlook.reason for outlook in found.nodes}

    assert found.outcome is Outcome.REFUSE
    assert "of 20000 MiB each" in reasons["small"]
    assert reasons["down"] == "the node is down"
    assert "nobody there may give way" in reasons["full"]


def test_what_the_catalogue_lacks_is_not_loaded() -> None:
    """Ours: only whoever loaded it can bring it back."""
    state = with_replicas(msgspec.structs.replace(loaded("z", 1), status=ReplicaStatus.FAILED))
    found = told(state, models(), ModelId("z"))

    assert found.outcome is Outcome.REFUSE
    assert "the catalogue does not have it" in found.nodes[0].reason


@given(fleets(), catalogues(), st.sampled_from(MODELS))
def test_what_is_told_is_what_would_be_done(
    state: FleetState, catalogue: Catalogue, model: ModelId
) -> None:
    """Issue: the same code decides and explains."""
    found = told(state, catalogue, model)
    decision = route(state, catalogue, model, hints=RouteHints(), in_flight={}, now=NOW)
    step = make_room(state, catalogue, model, NOW)

    if isinstance(decision, Serve):
        assert (found.outcome, found.node) == (Outcome.SERVE, decision.replica.node)
    elif found.outcome in (Outcome.LOAD, Outcome.EVICT):
        assert isinstance(step, Load | Evict)
        node = step.replica.node if isinstance(step, Load) else step.swap.node
        assert found.node == node
    elif found.outcome is Outcome.REFUSE:
        assert state.is_heard
        assert isinstance(step, Hold)
        assert step.retry_at is None
    if isinstance(decision, Refuse) and state.is_heard:
        assert found.outcome in (Outcome.REFUSE, Outcome.COMING)
    assert len(found.nodes) == len(state.nodes)
