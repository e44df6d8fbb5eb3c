"""Which of several replicas answers: places, favourites, and the less busy of two."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.errors import NoReplicaError
from cortex_core.fleet.state import FleetState, NodeHealth, NodeState, Resident
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.choose import LEADING_BYTES, affinity_of, choose
from cortex_core.routing.queue import DOUBLING_S, FIRST_RELEASE
from cortex_core.routing.route import Decision, RouteHints, Serve, Wait, route

MODEL = ModelId("org/model")
NOW = 1000.0
CATALOGUE = Catalogue(profiles={MODEL: Profile(id=MODEL, harness="simulated")})
draws = st.floats(0, 1, exclude_max=True)
keys = st.binary(min_size=1, max_size=40)


def rid(name: str) -> ReplicaId:
    return ReplicaId(node=NodeName(name), model=MODEL)


def fleet(*names: str, since: float = 0.0, **fields: object) -> FleetState:
    """Return nodes that have the model loaded."""
    nodes = {}
    for name in names:
        held = Replica(id=rid(name), status=ReplicaStatus.LOADED)
        nodes[NodeName(name)] = NodeState(
            name=NodeName(name),
            endpoint=f"http://{name}",
            health=NodeHealth.UP,
            facts=NodeFacts(hostname=name, devices=(), harnesses=("simulated",)),
            replicas={MODEL: msgspec.structs.replace(held, **fields)},
            residents={MODEL: Resident(since=since, used=since)},
        )
    return FleetState(nodes=nodes)


def ask(
    state: FleetState,
    in_flight: dict[str, int] | None = None,
    *,
    catalogue: Catalogue = CATALOGUE,
    hints: RouteHints | None = None,
    now: float = NOW,
    draw: float = 0.0,
) -> Decision:
    return route(
        state,
        catalogue,
        MODEL,
        hints=hints or RouteHints(),
        in_flight={rid(name): count for name, count in (in_flight or {}).items()},
        now=now,
        draw=draw,
    )


def served_by(decision: Decision) -> str:
    assert isinstance(decision, Serve)
    return decision.replica.node


def test_a_replica_is_given_so_many_requests_and_no_more() -> None:
    state = fleet("a", max_in_flight=4)

    assert served_by(ask(state, {"a": 3})) == "a"
    full = ask(state, {"a": 4})
    assert isinstance(full, Wait)
    assert full.is_full
    assert not full.is_load
    assert full.candidates[0].rejected


@pytest.mark.parametrize(
    ("profile", "reported", "expected"), [(2, 5, 2), (None, 5, 5), (None, None, 64)]
)
def test_the_catalogue_says_how_many_else_the_neuron_else_the_gateway(
    profile: int | None, reported: int | None, expected: int
) -> None:
    catalogue = Catalogue(
        profiles={MODEL: Profile(id=MODEL, harness="simulated", max_in_flight=profile)}
    )
    state = fleet("a", max_in_flight=reported)

    assert isinstance(ask(state, {"a": expected - 1}, catalogue=catalogue), Serve)
    assert isinstance(ask(state, {"a": expected}, catalogue=catalogue), Wait)


def test_a_fresh_replica_is_filled_at_a_ramp() -> None:
    state = fleet("a", since=NOW)

    assert isinstance(ask(state, {"a": FIRST_RELEASE - 1}), Serve)
    assert isinstance(ask(state, {"a": FIRST_RELEASE}), Wait)
    assert isinstance(ask(state, {"a": FIRST_RELEASE}, now=NOW + DOUBLING_S), Serve)


def test_a_request_that_had_its_turn_is_not_queued_again() -> None:
    state = fleet("a", max_in_flight=1)

    assert served_by(ask(state, {"a": 9}, hints=RouteHints(has_turn=True))) == "a"


def test_who_is_full_is_passed_over() -> None:
    state = fleet("a", "b", max_in_flight=2)

    assert served_by(ask(state, {"a": 2, "b": 1})) == "b"


def test_a_replica_of_twice_the_size_takes_twice_the_work() -> None:
    state = fleet("a", "b")
    big = msgspec.structs.replace(state.nodes[NodeName("b")].replicas[MODEL], max_in_flight=128)
    node = msgspec.structs.replace(state.nodes[NodeName("b")], replicas={MODEL: big})
    state = msgspec.structs.replace(state, nodes={**state.nodes, node.name: node})

    assert served_by(ask(state, {"a": 10, "b": 15})) == "b"
    assert served_by(ask(state, {"a": 10, "b": 25})) == "a"


def test_a_full_kv_cache_keeps_new_requests_away() -> None:
    state = fleet("a", "b")
    pressed = msgspec.structs.replace(
        state.nodes[NodeName("a")].replicas[MODEL], kv_cache_usage=0.99
    )
    node = msgspec.structs.replace(state.nodes[NodeName("a")], replicas={MODEL: pressed})
    state = msgspec.structs.replace(state, nodes={**state.nodes, node.name: node})

    assert served_by(ask(state, {"a": 1, "b": 5})) == "b"


@given(keys, st.lists(draws, min_size=1, max_size=5))
def test_a_conversation_stays_with_its_replica(key: bytes, drawn: list[float]) -> None:
    state = fleet("a", "b", "c", "d")

    chosen = {
        served_by(ask(state, {"a": 2}, hints=RouteHints(affinity=key), draw=draw)) for draw in drawn
    }

    assert len(chosen) == 1


@given(keys)
def test_a_replica_that_goes_moves_its_own_conversations_alone(key: bytes) -> None:
    hints = RouteHints(affinity=key)
    before = served_by(ask(fleet("a", "b", "c", "d"), hints=hints))

    after = served_by(ask(fleet("a", "b", "c"), hints=hints))

    assert after == before or before == "d"


def test_conversations_spread_over_the_replicas() -> None:
    state = fleet("a", "b", "c", "d")

    chosen = Counter(
        served_by(ask(state, hints=RouteHints(affinity=str(n).encode()))) for n in range(400)
    )

    assert min(chosen[name] for name in "abcd") > 60


@given(keys)
def test_a_favourite_yields_under_load(key: bytes) -> None:
    state = fleet("a", "b", "c")
    hints = RouteHints(affinity=key)
    favourite = served_by(ask(state, hints=hints))

    assert served_by(ask(state, {favourite: 30}, hints=hints)) != favourite


@given(draws, st.lists(st.integers(0, 60), min_size=3, max_size=8))
def test_two_choices_never_take_the_busiest_alone(draw: float, depths: list[int]) -> None:
    names = [f"n{number}" for number in range(len(depths))]
    state = fleet(*names)
    counts = dict(zip(names, depths, strict=True))

    chosen = served_by(ask(state, counts, draw=draw))

    assert counts[chosen] <= sorted(depths)[-2]


def test_two_choices_reach_every_replica() -> None:
    state = fleet(*"abcde")

    chosen = {served_by(ask(state, draw=number / 1000)) for number in range(1000)}

    assert chosen == set("abcd")  # the last one by name loses every tie


def test_choosing_from_nothing_is_an_error() -> None:
    with pytest.raises(NoReplicaError):
        choose([], CATALOGUE, in_flight={}, affinity=None, draw=0.0, default=64)


def test_what_tells_a_conversation_is_its_session_else_its_beginning() -> None:
    first = b'{"model": "m", "stream": true, "messages": [{"role": "system", "content": "you'
    other = b'{"model": "n", "messages": [{"role": "system", "content": "you'

    assert affinity_of(None, first) == affinity_of(None, other)
    assert affinity_of(None, b'{"model": "m"}') is None
    assert affinity_of("mine", first) == affinity_of("mine", other)
    assert affinity_of("mine", first) != affinity_of("yours", first)
    assert len(affinity_of(None, first + b"x" * 10_000) or b"") == LEADING_BYTES
