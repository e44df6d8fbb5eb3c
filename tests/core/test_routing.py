"""Where requests go, and why not elsewhere."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.errors import (
    ModelDoesNotFitError,
    ModelLoadFailedError,
    ModelLoadingError,
    ModelNotFoundError,
    NoReplicaError,
)
from cortex_core.fleet.reducers import with_doubt, with_load_failure, with_request_failure
from cortex_core.fleet.state import FleetState, NodeHealth, NodeState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts
from cortex_core.placement.case import UNDER_WAY
from cortex_core.placement.plan import plan
from cortex_core.placement.steps import Hold, Load, Wake
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.routing.resolve import resolve
from cortex_core.routing.retry import MAX_ATTEMPTS, Failure, may_retry
from cortex_core.routing.route import Refuse, RouteHints, Serve, Wait, route
from tests.core.strategies import MODELS, NODES, NOW, catalogues, fleets
from tests.core.test_placement import make_room

MODEL = MODELS[0]
in_flights = st.dictionaries(
    st.builds(ReplicaId, node=st.sampled_from(NODES), model=st.sampled_from(MODELS)),
    st.integers(0, 30),
)


def node(name: str, *held: Replica, health: NodeHealth = NodeHealth.UP) -> NodeState:
    return NodeState(
        name=NodeName(name),
        endpoint=f"http://{name}",
        health=health,
        facts=NodeFacts(hostname=name, devices=(), harnesses=("simulated",)),
        replicas={replica.id.model: replica for replica in held},
    )


def replica(name: str, status: ReplicaStatus = ReplicaStatus.LOADED, **more: object) -> Replica:
    rid = ReplicaId(node=NodeName(name), model=MODEL)
    return msgspec.structs.replace(Replica(id=rid, status=status), **more)


def fleet(*nodes: NodeState) -> FleetState:
    return FleetState(nodes={n.name: n for n in nodes})


CATALOGUE = Catalogue(profiles={MODEL: Profile(id=MODEL, harness="simulated")})


def ask(state: FleetState, catalogue: Catalogue = CATALOGUE, **hints: object) -> object:
    return route(
        state,
        catalogue,
        MODEL,
        hints=RouteHints(**hints),  # type: ignore[arg-type]
        in_flight={},
        now=NOW,
    )


@given(fleets(), catalogues(), in_flights, st.sampled_from(MODELS))
def test_only_servable_replicas_of_reachable_nodes_are_served_from(
    state: FleetState,
    catalogue: Catalogue,
    in_flight: dict[ReplicaId, int],
    model: ModelId,
) -> None:
    """Ours: never a down, unseen or draining node, never an unknown status."""
    decision = route(state, catalogue, model, hints=RouteHints(), in_flight=in_flight, now=NOW)

    if isinstance(decision, Serve):
        chosen = state.nodes[decision.replica.node]
        assert chosen.is_reachable
        assert not chosen.is_draining
        assert chosen.replicas[model].status is ReplicaStatus.LOADED


@given(fleets(), catalogues(), in_flights, st.sampled_from(MODELS))
def test_a_sound_idle_replica_is_always_found(
    state: FleetState,
    catalogue: Catalogue,
    in_flight: dict[ReplicaId, int],
    model: ModelId,
) -> None:
    """Ours: a request is never refused or held while a replica could take it."""
    exists = any(
        n.is_reachable and not n.is_draining and r.is_servable for n, r in state.replicas_of(model)
    )

    decision = route(state, catalogue, model, hints=RouteHints(), in_flight=in_flight, now=NOW)

    assert isinstance(decision, Serve) == exists


@given(fleets(), catalogues(), st.sampled_from(MODELS))
def test_nothing_waits_in_vain(state: FleetState, catalogue: Catalogue, model: ModelId) -> None:
    """Ours: a request is held only when a load is under way or can be planned."""
    decision = route(state, catalogue, model, hints=RouteHints(), in_flight={}, now=NOW)

    if isinstance(decision, Wait) and state.is_heard:
        changing = any(
            n.is_reachable and r.status is not ReplicaStatus.LOADED
            for n, r in state.replicas_of(model)
        )
        assert changing or isinstance(make_room(state, catalogue, model, NOW), Load | Wake)


@given(fleets(), catalogues(), st.sampled_from(MODELS))
def test_route_waits_for_a_load_exactly_when_one_is_under_way_or_planned(
    state: FleetState, catalogue: Catalogue, model: ModelId
) -> None:
    """Ours: the two decisions never wait for each other."""
    decision = route(state, catalogue, model, hints=RouteHints(), in_flight={}, now=NOW)
    steps = plan(state, catalogue, [model], NOW)
    planned = [step for step in steps if isinstance(step, Load)]
    # Who is there now will have been there for long enough at some time.
    has_its_turn = any(isinstance(step, Hold) and step.retry_at is not None for step in steps)
    under_way = [r for n, r in state.replicas_of(model) if n.takes_work and r.status in UNDER_WAY]

    if planned or (under_way and not isinstance(decision, Serve)):
        assert isinstance(decision, Wait)
    if isinstance(decision, Wait) and decision.is_load:
        assert planned or under_way or has_its_turn


@given(fleets(), catalogues(), st.sampled_from(MODELS))
def test_every_candidate_is_either_rejected_with_a_reason_or_scored(
    state: FleetState, catalogue: Catalogue, model: ModelId
) -> None:
    """Ours: each decision can be explained."""
    decision = route(state, catalogue, model, hints=RouteHints(), in_flight={}, now=NOW)

    assert len(decision.candidates) == len(list(state.replicas_of(model)))
    for candidate in decision.candidates:
        if isinstance(decision, Serve):
            assert (candidate.rejected is None) == (candidate.score is not None)
        else:
            assert candidate.rejected


def test_the_least_loaded_replica_is_picked() -> None:
    """Ours: in flight plus twice what waits; what the gateway counts replaces the report."""
    state = fleet(
        node("a", replica("a", in_flight=3)), node("b", replica("b", in_flight=1, queued=2))
    )

    first = ask(state)
    own = {ReplicaId(node=NodeName("a"), model=MODEL): 9}
    second = route(state, CATALOGUE, MODEL, hints=RouteHints(), in_flight=own, now=NOW)

    assert isinstance(first, Serve)
    assert first.replica.node == "a"
    assert isinstance(second, Serve)
    assert second.replica.node == "b"


@pytest.mark.parametrize("health", [NodeHealth.DOWN, NodeHealth.UNSEEN])
def test_a_node_that_is_not_reachable_gets_no_request(health: NodeHealth) -> None:
    """Ours: whatever it last reported."""
    state = fleet(node("a", replica("a"), health=health), node("b", replica("b", in_flight=50)))

    decision = ask(state)

    assert isinstance(decision, Serve)
    assert decision.replica.node == "b"


def test_a_suspect_node_is_used_only_in_want_of_a_better() -> None:
    """Ours: no new work for it if an alternative exists."""
    suspect = node("a", replica("a"), health=NodeHealth.SUSPECT)

    alone = ask(fleet(suspect))
    both = ask(fleet(suspect, node("b", replica("b", in_flight=50))))

    assert isinstance(alone, Serve)
    assert isinstance(both, Serve)
    assert both.replica.node == "b"


def test_an_ejected_replica_is_avoided_but_never_the_last_one() -> None:
    """Ours: panic routing rather than an outage of our own making."""
    state = fleet(node("a", replica("a")), node("b", replica("b", in_flight=50)))
    lonely = fleet(node("a", replica("a")))
    for _ in range(5):
        state = with_request_failure(state, ReplicaId(node=NodeName("a"), model=MODEL), NOW)
        lonely = with_request_failure(lonely, ReplicaId(node=NodeName("a"), model=MODEL), NOW)

    avoided, last = ask(state), ask(lonely)

    assert isinstance(avoided, Serve)
    assert avoided.replica.node == "b"
    assert isinstance(last, Serve)


def test_a_cold_model_is_waited_for_or_refused_as_the_caller_likes() -> None:
    """Contract: `x-cortex-cold-ok: false`."""
    state = fleet(node("a"))

    waits, refused = ask(state), ask(state, cold_ok=False)

    assert isinstance(waits, Wait)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, ModelLoadingError)


def test_who_does_not_wait_is_told_when_the_load_will_be_over() -> None:
    """Issue: an honest Retry-After."""
    loading = replica(
        "a", ReplicaStatus.LOADING, progress=LoadProgress(stage="weights", eta_s=42.0)
    )

    refused = ask(fleet(node("a", loading)), cold_ok=False)

    assert isinstance(refused, Refuse)
    assert refused.error.retry_after_s == 42.0


def test_a_model_that_fits_nowhere_says_so_node_by_node() -> None:
    """Contract: model_does_not_fit, with the reason of each node."""
    catalogue = Catalogue(profiles={MODEL: Profile(id=MODEL, harness="vllm")})

    decision = ask(fleet(node("a"), node("b")), catalogue)

    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, ModelDoesNotFitError)
    assert "a: it has no harness 'vllm'" in decision.error.message
    assert "b: it has no harness 'vllm'" in decision.error.message


def test_a_feasible_model_on_an_unreachable_fleet_is_transient() -> None:
    """Lesson: a transient outage answered 404 makes clients give up for good."""
    decision = ask(fleet(node("a", health=NodeHealth.DOWN)))

    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, NoReplicaError)
    assert decision.error.retry_after_s is not None


def test_nothing_is_refused_before_every_node_was_asked() -> None:
    """Ours: a gateway that has just started does not know what it has."""
    unseen = msgspec.structs.replace(node("a"), health=NodeHealth.UNSEEN, facts=None)
    missed = msgspec.structs.replace(unseen, misses=1)

    held = ask(fleet(unseen, node("b")))
    assert isinstance(held, Wait)
    assert not held.is_load
    assert plan(fleet(unseen, node("b")), CATALOGUE, [MODEL], NOW) == ()
    assert isinstance(ask(fleet(missed)), Refuse)


def test_after_a_failed_load_callers_get_the_reason_and_when_to_retry() -> None:
    """Ours: a failing load is not repeated for every caller."""
    rid = ReplicaId(node=NodeName("a"), model=MODEL)
    state = with_load_failure(fleet(node("a")), rid, "out of memory", NOW)

    decision = ask(state)

    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, ModelLoadFailedError)
    assert "out of memory" in decision.error.message
    assert decision.error.retry_after_s == pytest.approx(5.0)


def test_a_request_goes_to_the_address_of_the_replica_if_it_has_its_own() -> None:
    """Contract: `/models/{id}/endpoint` of a given neuron."""
    own = ask(fleet(node("a", replica("a", endpoint="http://a:8001"))))
    shared = ask(fleet(node("a", replica("a"))))

    assert isinstance(own, Serve)
    assert own.endpoint == "http://a:8001"
    assert isinstance(shared, Serve)
    assert shared.endpoint == "http://a"


def test_a_draining_node_does_not_keep_a_model_from_being_loaded_elsewhere() -> None:
    """Ours: what it has is on its way out."""
    leaving = msgspec.structs.replace(node("a", replica("a")), is_draining=True)
    state = fleet(leaving, node("b"))

    decision = ask(state)
    (step,) = plan(state, CATALOGUE, [MODEL], NOW)

    assert isinstance(decision, Wait)
    assert decision.reason == "it is about to be loaded on b"
    assert isinstance(step, Load)
    assert step.replica.node == "b"


def test_a_loaded_replica_that_takes_nothing_is_not_loaded_again() -> None:
    """Ours: a load would answer at once and change nothing."""
    state = fleet(node("a", replica("a", unservable_reason="warming up")))

    decision = ask(state)

    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, NoReplicaError)
    assert "warming up" in decision.error.message
    assert not [s for s in plan(state, CATALOGUE, [MODEL], NOW) if isinstance(s, Load)]


def test_after_a_refused_connection_the_model_is_loaded_elsewhere() -> None:
    """Ours: the doubted replica is no reason to wait, and its node not the one to load on."""
    rid = ReplicaId(node=NodeName("a"), model=MODEL)
    state = with_doubt(fleet(node("a", replica("a")), node("b")), rid)

    tried = ask(state, excluded=frozenset({rid}))
    alone = ask(with_doubt(fleet(node("a", replica("a"))), rid), excluded=frozenset({rid}))

    assert isinstance(tried, Wait)
    assert tried.reason == "it is about to be loaded on b"
    assert isinstance(alone, Refuse)


def test_a_tried_replica_is_not_tried_again() -> None:
    """Ours: the second attempt goes elsewhere or nowhere."""
    a = ReplicaId(node=NodeName("a"), model=MODEL)
    both = fleet(node("a", replica("a")), node("b", replica("b")))

    second = ask(both, excluded=frozenset({a}))
    alone = ask(fleet(node("a", replica("a"))), excluded=frozenset({a}))

    assert isinstance(second, Serve)
    assert second.replica.node == "b"
    assert isinstance(alone, Refuse)


def test_names_resolve_through_aliases_catalogue_and_nodes() -> None:
    """Ours: what a node has is served even when the catalogue lacks it."""
    catalogue = Catalogue(aliases={"small": MODEL, "dangling": ModelId("x")})
    state = fleet(node("a", replica("a")))

    assert resolve(state, catalogue, "small").model == MODEL
    assert resolve(state, catalogue, "small").is_alias
    assert not resolve(state, catalogue, MODEL).is_alias
    for unknown in ("dangling", "nope"):
        with pytest.raises(ModelNotFoundError):
            resolve(state, catalogue, unknown)


@given(
    st.sampled_from(Failure),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 100),
    st.integers(0, 1000),
)
def test_a_retry_never_follows_a_visible_byte_or_a_running_request(
    failure: Failure, attempts: int, bytes_sent: bool, retries: int, in_flight: int
) -> None:
    """Ours: no request is ever answered twice."""
    allowed = may_retry(
        failure, attempts=attempts, bytes_sent=bytes_sent, retries=retries, in_flight=in_flight
    )

    if allowed:
        assert not bytes_sent
        assert attempts < MAX_ATTEMPTS
        assert failure not in (Failure.TIMEOUT, Failure.CUT_MID_ANSWER, Failure.BAD_ANSWER)
        assert retries < max(3, in_flight * 0.2)


@pytest.mark.parametrize(
    ("attempts", "bytes_sent", "retries", "in_flight", "allowed"),
    [
        (1, False, 0, 1, True),
        (1, True, 0, 1, False),
        (MAX_ATTEMPTS, False, 0, 1, False),
        (1, False, 3, 1, False),
        (1, False, 3, 100, True),
    ],
)
def test_a_refused_connection_is_retried_within_bounds(
    attempts: int, bytes_sent: bool, retries: int, in_flight: int, allowed: bool
) -> None:
    """Ours: each bound alone is enough to stop it."""
    decision = may_retry(
        Failure.CONNECT,
        attempts=attempts,
        bytes_sent=bytes_sent,
        retries=retries,
        in_flight=in_flight,
    )

    assert decision is allowed
