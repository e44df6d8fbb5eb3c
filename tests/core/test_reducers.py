"""How the fleet snapshot changes."""

import math

import msgspec
from hypothesis import given, strategies as st

from cortex_core.fleet.breaker import FAILURES_TO_EJECT, MAX_EJECTION_S, Breaker, with_failure
from cortex_core.fleet.reducers import (
    MAX_COOL_DOWN_S,
    from_endpoints,
    with_command,
    with_doubt,
    with_facts,
    with_load_failure,
    with_miss,
    with_report,
    with_request_failure,
    with_request_success,
    with_unloads,
    with_use,
    without_node,
)
from cortex_core.fleet.state import FleetState, LoadCommand, NodeHealth
from cortex_core.ids import BootId, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.replica import Replica, ReplicaStatus

BEAST = NodeName("beast")
MODEL = ModelId("a/b")
RID = ReplicaId(node=BEAST, model=MODEL)


def fresh() -> FleetState:
    return from_endpoints({BEAST: "http://beast:13131/"})


def report(status: ReplicaStatus = ReplicaStatus.LOADED, boot: str = "b1") -> NodeReport:
    return NodeReport(replicas=(Replica(id=RID, status=status),), boot_id=BootId(boot))


def facts(boot: str = "b1") -> NodeFacts:
    return NodeFacts(hostname="beast", devices=(), harnesses=("vllm",), boot_id=BootId(boot))


def test_one_miss_makes_suspect_three_make_down_and_one_report_brings_it_back() -> None:
    """Ours (architecture, "Health")."""
    state = with_report(fresh(), BEAST, report(), 1.0)
    seen = []
    for _ in range(3):
        state = with_miss(state, BEAST, "refused")
        seen.append(state.nodes[BEAST].health)

    assert seen == [NodeHealth.SUSPECT, NodeHealth.SUSPECT, NodeHealth.DOWN]
    assert state.nodes[BEAST].replicas  # unknown, not gone
    assert with_report(state, BEAST, report(), 2.0).nodes[BEAST].health is NodeHealth.UP


def test_a_node_that_never_answered_is_not_taken_for_well() -> None:
    """Lesson: never-healthy stays unhealthy."""
    state = with_miss(fresh(), BEAST, "refused")

    assert not state.nodes[BEAST].is_reachable


def test_another_boot_id_voids_the_facts() -> None:
    """Ours: a rebuilt host is discovered again."""
    state = with_report(with_facts(fresh(), BEAST, facts("b1")), BEAST, report(boot="b1"), 1.0)

    assert state.nodes[BEAST].facts is not None
    assert with_report(state, BEAST, report(boot="b2"), 2.0).nodes[BEAST].facts is None


def test_another_life_of_a_node_starts_with_a_clean_slate() -> None:
    """Ours: failures of the life before say nothing of this one."""
    state = with_report(with_facts(fresh(), BEAST, facts("b1")), BEAST, report(boot="b1"), 1.0)
    state = with_load_failure(with_request_failure(state, RID, 1.0), RID, "oom", 1.0)
    empty = NodeReport(replicas=(), boot_id=BootId("b1"))

    same = with_report(state, BEAST, empty, 2.0)
    other = with_report(state, BEAST, msgspec.structs.replace(empty, boot_id=BootId("b2")), 2.0)

    assert (RID in same.breakers, RID in same.failures) == (True, True)
    assert (RID in other.breakers, RID in other.failures) == (False, False)


def test_a_loaded_replica_clears_its_load_failures() -> None:
    """Ours: level-triggered; whoever loaded it, it works."""
    state = with_load_failure(fresh(), RID, "oom", 0.0)

    assert RID in state.failures
    assert RID not in with_report(state, BEAST, report(), 1.0).failures


@given(st.integers(1, 200))
def test_cool_down_doubles_to_a_cap(failures: int) -> None:
    """Ours: 5, 10, 20 ... 300 s."""
    state = fresh()
    for _ in range(failures):
        state = with_load_failure(state, RID, "oom", 0.0)

    assert state.failures[RID].retry_at == min(5.0 * 2 ** (failures - 1), MAX_COOL_DOWN_S)


def test_a_doubted_replica_is_unknown_until_the_next_report() -> None:
    """Ours: a neuron's refusal outweighs an older report."""
    state = with_doubt(with_report(fresh(), BEAST, report(), 1.0), RID)

    assert state.nodes[BEAST].replicas[MODEL].status is ReplicaStatus.UNKNOWN
    after = with_report(state, BEAST, report(), 2.0)
    assert after.nodes[BEAST].replicas[MODEL].is_servable


def test_success_without_earlier_failure_changes_nothing() -> None:
    """Ours: the common path makes no new snapshot."""
    state = fresh()

    assert with_request_success(state, RID) is state


def test_success_closes_the_breaker() -> None:
    """Ours."""
    state = with_request_failure(fresh(), RID, 0.0)

    assert with_request_success(state, RID).breakers == {}


@given(st.lists(st.floats(0, 100), max_size=40))
def test_breaker_opens_only_after_enough_failures_and_never_for_longer_than_the_cap(
    gaps: list[float],
) -> None:
    """Ours, after Envoy's outlier detection."""
    breaker: Breaker | None = None
    now = 0.0
    for count, gap in enumerate(gaps, start=1):
        now += gap
        breaker = with_failure(breaker, now)
        assert count >= FAILURES_TO_EJECT or not breaker.is_open(now)
        assert breaker.ejected_until <= now + MAX_EJECTION_S


@given(st.lists(st.sampled_from(["miss", "report", "fail", "doubt"]), max_size=30))
def test_every_change_raises_the_revision(steps: list[str]) -> None:
    """Ours: waiters wake by it."""
    state = fresh()
    for step in steps:
        before = state
        match step:
            case "miss":
                state = with_miss(state, BEAST, "x")
            case "report":
                state = with_report(state, BEAST, report(), 1.0)
            case "fail":
                state = with_load_failure(state, RID, "x", 1.0)
            case _:
                state = with_doubt(state, RID)
        assert state is before or state.revision > before.revision


NAMES = tuple(NodeName(name) for name in "abc")
HELD = tuple(ModelId(name) for name in "xyz")
told = st.tuples(st.sampled_from(NAMES), st.sets(st.sampled_from(HELD)), st.booleans())


@given(st.lists(told, max_size=20))
def test_what_is_kept_beside_the_fleet_is_what_it_has(
    news: list[tuple[NodeName, set[ModelId], bool]],
) -> None:
    """Ours: carried from one snapshot to the next, or reckoned anew, it is the same."""
    state = from_endpoints({name: f"http://{name}" for name in NAMES})
    for name, models, is_loaded in news:
        status = ReplicaStatus.LOADED if is_loaded else ReplicaStatus.SLEEPING
        held = [Replica(id=ReplicaId(node=name, model=one), status=status) for one in models]
        _ = state.homes, state.spread, state.commands_at
        if name in state.nodes:
            state = with_report(state, name, NodeReport(replicas=tuple(held)), 1.0)
        if not models and name in state.nodes:
            state = without_node(state, name)
        for replica in held:
            command = LoadCommand(devices=(), vram_bytes=None, sent_at=1.0)
            state = (
                with_command(state, replica.id, command)
                if replica.id.node in state.nodes
                else state
            )
    anew = FleetState(nodes=state.nodes, commands=state.commands)

    assert state.homes == anew.homes
    assert state.spread == anew.spread
    assert state.commands_at == anew.commands_at
    assert {m: [n.name for n, _ in state.replicas_of(m)] for m in HELD} == {
        m: [n.name for n in state.nodes.values() if m in n.replicas] for m in HELD
    }


def test_use_makes_a_replica_younger_and_never_older() -> None:
    """Ours: reports may tell of later use than the gateway itself."""
    state = with_report(fresh(), BEAST, report(), 5.0)
    unknown = ReplicaId(node=BEAST, model=ModelId("none"))

    assert with_use(state, RID, 4.0) is state
    assert with_use(state, unknown, 9.0) is state
    resident = with_use(state, RID, 9.0).resident(RID)
    assert resident is not None
    assert (resident.since, resident.used) == (5.0, 9.0)


def test_what_a_node_had_at_its_first_report_is_not_taken_for_new() -> None:
    """Ours: a gateway that is started before a fleet at work gives it all it can take at once."""
    state = with_report(with_facts(fresh(), BEAST, facts()), BEAST, report(), 10.0)
    there = state.nodes[BEAST].residents[MODEL]
    gone = with_report(state, BEAST, NodeReport(replicas=(), boot_id=BootId("b1")), 20.0)
    came = with_report(gone, BEAST, report(), 30.0).nodes[BEAST].residents[MODEL]

    assert (there.since, there.age_s(11.0)) == (10.0, math.inf)
    assert came.age_s(31.0) == 1.0


def test_what_is_being_loaded_is_not_on_its_way_out_any_more() -> None:
    """Ours: its unload failed, its node lost it by itself, and another copy would be one too many."""
    going = with_unloads(with_report(fresh(), BEAST, report(), 1.0), (RID,))

    coming = with_command(going, RID, LoadCommand(devices=(), vram_bytes=None, sent_at=2.0))

    assert going.unloads == {RID}
    assert coming.unloads == frozenset()
