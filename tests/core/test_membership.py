"""Nodes come and go with the settings, while requests and commands are with them."""

from cortex_core.fleet.reducers import (
    from_endpoints,
    revised,
    with_command,
    with_doubt,
    with_load_failure,
    with_node,
    with_report,
    with_request_failure,
    with_swap,
    without_node,
)
from cortex_core.fleet.state import FleetState, LoadCommand, NodeState, Swap, Victim
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.replica import Replica, ReplicaStatus

A, B = NodeName("a"), NodeName("b")
MODEL, OTHER = ModelId("org/model"), ModelId("org/other")


def replica(node: NodeName, model: ModelId = MODEL) -> Replica:
    return Replica(id=ReplicaId(node=node, model=model), status=ReplicaStatus.LOADED, load_s=3.0)


def busy_fleet() -> FleetState:
    """Two nodes, each with something of every kind that is known by replica."""
    state = from_endpoints({A: "http://a", B: "http://b"})
    for node, model in ((A, MODEL), (B, OTHER)):
        here = replica(node, model)
        state = with_report(state, node, NodeReport(replicas=(here,)), 1.0)
        state = with_command(state, here.id, LoadCommand(devices=(), vram_bytes=None, sent_at=1.0))
        state = with_load_failure(state, here.id, "broken", 1.0)
        state = with_request_failure(state, here.id, 1.0)
        swap = Swap(node=node, devices=(), share_bytes=1, victims=(Victim(replica=here.id),))
        state = with_swap(state, model, swap)
    return state


def test_nothing_is_left_of_a_node_that_is_taken_out() -> None:
    """Ours: what is left would be true of whatever has that name next."""
    state = without_node(busy_fleet(), A)

    assert set(state.nodes) == {B}
    known = [*state.commands, *state.failures, *state.breakers, *state.unloads]
    assert {one.node for one in known} == {B}
    assert {swap.node for swap in state.swaps.values()} == {B}
    assert state.revision > busy_fleet().revision


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    """Ours: idempotent, and wakes nobody."""
    state = busy_fleet()

    assert without_node(state, NodeName("none")) is state


def test_what_ends_late_at_a_node_that_is_gone_leaves_no_trace() -> None:
    """Ours: requests and loads outlive the entry of their node."""
    state = without_node(busy_fleet(), A)
    gone = ReplicaId(node=A, model=MODEL)

    assert with_doubt(state, gone) is state
    assert with_request_failure(state, gone, 2.0) is state
    assert with_load_failure(state, gone, "late", 2.0) is state


def test_a_node_of_the_same_name_starts_anew() -> None:
    """Ours: another address is another machine."""
    state = with_node(busy_fleet(), NodeState(name=A, endpoint="http://elsewhere"))

    assert not state.nodes[A].replicas
    assert ReplicaId(node=A, model=MODEL) not in state.breakers
    assert list(state.nodes) == [B, A]


def test_another_catalogue_is_news_of_the_same_fleet() -> None:
    """Ours: who waits decides again."""
    state = busy_fleet()

    assert revised(state).revision == state.revision + 1
    assert revised(state).nodes == state.nodes
