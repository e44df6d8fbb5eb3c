"""Every decision leaves a record, and `/admin/decisions` finds it."""

import pathlib

import pytest
from prometheus_client import CollectorRegistry

from cortex_core.catalogue import Profile
from cortex_core.ids import ModelId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.placement.steps import Hold, NodeVerdict
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.record import DecisionKind, Record
from cortex_core.server.clock import SystemClock
from cortex_gateway.control.journal import KEPT_STEPS, Journal
from cortex_gateway.metrics import GatewayMetrics
from tests.fakes.gateway import MODEL, TO_A, ask, gateway, replica
from tests.fakes.neuron import FakeNeuron, running
from tests.fakes.upstream import ScriptedNode, answers, cuts, nodes
from tests.gateway.door import door, write
from tests.gateway.fleet import NODE, control_of, has_status, until, until_true

OK = answers(200, b'{"choices":[]}')


def journal() -> tuple[Journal, CollectorRegistry]:
    registry = CollectorRegistry()
    return Journal(SystemClock(), GatewayMetrics(registry).decided), registry


async def test_a_request_can_be_followed_by_its_id() -> None:
    """Issue: candidates, scores, reasons; here of a request whose first node failed."""
    async with (
        nodes(bad := ScriptedNode(cuts), good := ScriptedNode(OK)),
        gateway({"a": bad.url, "b": good.url}) as g,
    ):
        await ask(g.url, headers={"x-request-id": "other"})
        await ask(g.url, headers={"x-request-id": "mine", **TO_A})
        answer = await ask(g.url, path="/admin/decisions?request=mine", method="GET")

    second, first = answer.json["decisions"]
    assert (first["kind"], first["node"], first["request_id"]) == ("route", "a", "mine")
    assert {one["node"] for one in first["considered"]} == {"a", "b"}
    assert all(0 <= one["score"] <= 1 for one in first["considered"])
    assert second["node"] == "b"
    assert [one.get("rejected") for one in second["considered"]] == [
        "it was tried for this request",
        None,
    ]


async def test_waits_and_refusals_are_recorded_with_their_reasons() -> None:
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", ReplicaStatus.LOADING)]) as g,
    ):
        await ask(g.url, headers={"x-cortex-cold-ok": "false"})
        await ask(g.url, headers={"prefer": "wait=0"})
        answer = await ask(g.url, path=f"/admin/decisions?model={MODEL}", method="GET")

    newest, oldest = answer.json["decisions"]
    assert (newest["kind"], newest["reason"]) == ("wait", "it is loading on a")
    assert oldest["kind"] == "refuse"
    assert [one["rejected"] for one in oldest["considered"]] == ["it is loading"]


@pytest.mark.parametrize("limit", ["0", "x", "1001", "-1", "9" * 30])
async def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    async with gateway({"a": "http://127.0.0.1:9"}) as g:
        answer = await ask(g.url, path=f"/admin/decisions?limit={limit}", method="GET")

    assert (answer.status, answer.json["error"]["param"]) == (400, "limit")


async def test_who_was_moved_and_what_it_cost_is_recorded() -> None:
    old, new = ModelId("org/a"), ModelId("org/b")
    neuron = FakeNeuron()
    neuron.set_model(old, "loaded", vram_used_mb=20_000)
    kept, registry = journal()

    def done() -> list[Record]:
        return [one for one in kept.find(model=new) if one.kind is not DecisionKind.HOLD]

    async with (
        running(neuron),
        control_of(
            {NODE: neuron.url},
            profiles=[Profile(id=m, harness="simulated", vram_mb=20_000) for m in (old, new)],
            policy=EvictionPolicy(min_residency_s=0.0),
            journal=kept,
        ) as store,
    ):
        await until(store, has_status(NODE, old, ReplicaStatus.LOADED))
        with store.demand(new):
            await until(store, has_status(NODE, new, ReplicaStatus.LOADED))
            await until_true(lambda: len(done()) == 4)

    load_ended, load, evict_ended, evict = done()
    assert (evict.kind, evict.node, evict.victims) == (DecisionKind.EVICT, NODE, (old,))
    assert evict_ended.took_s is not None
    assert (load.kind, load_ended.kind, load_ended.error) == ("load", "load", None)
    assert kept.find(model=old) == (evict_ended, evict)
    assert registry.get_sample_value("cortex_decisions_total", {"kind": "evict"}) == 1


async def test_a_load_that_fails_says_so_in_its_record() -> None:
    neuron = FakeNeuron()
    neuron.load_error = (500, {"error": {"message": "bad weights"}})
    model = ModelId("org/a")
    kept, _ = journal()
    async with (
        running(neuron),
        control_of(
            {NODE: neuron.url}, profiles=[Profile(id=model, harness="simulated")], journal=kept
        ) as store,
    ):
        with store.demand(model):
            await until_true(lambda: any(one.error for one in kept.find(model=model)))

    assert any(one.error == "bad weights" for one in kept.find(model=model))


def test_the_same_hold_is_noted_once_and_the_ring_is_bounded() -> None:
    kept, registry = journal()

    def hold(reason: str) -> Hold:
        verdict = NodeVerdict(node=NODE, reason=reason, is_permanent=False)
        return Hold(model=MODEL, verdicts=(verdict,))

    for _ in range(3):
        kept.step(hold("no room"))
    assert registry.get_sample_value("cortex_decisions_total", {"kind": "hold"}) == 1
    for number in range(2 * KEPT_STEPS):
        kept.step(hold(str(number)))
    assert len(kept.find(limit=10 * KEPT_STEPS)) == KEPT_STEPS


async def test_what_operators_do_is_recorded_as_theirs(tmp_path: pathlib.Path) -> None:
    """Ours: who reads why a model left must not miss that somebody unloaded it by hand."""
    a, b = "org/a", "org/b"
    neuron = FakeNeuron()
    neuron.set_model(a, "loaded", vram_used_mb=20_000)
    big = [{"id": model, "harness": "simulated", "vram_mb": 20_000} for model in (a, b)]
    at_once = "[eviction]\nmin_residency_s = 0\n"
    async with (
        running(neuron),
        door(write(tmp_path, {"beast": neuron.url}, *big, more=at_once)) as d,
    ):
        await d.until_up("beast")
        await d.post(f"/admin/models/{b}/load", {"node": "beast"})
        await d.post(f"/admin/models/{b}/pin")
        await d.post(f"/admin/models/{b}/unload", {"node": "beast"})
        neuron.load_error = (500, {"error": {"message": "bad weights"}})
        await d.post(f"/admin/models/{a}/load", {"node": "beast"})
        await d.post("/admin/nodes/beast/cordon")
        found = (await d.get("/admin/decisions"))["decisions"]

    told = [
        (one["kind"], one["model"], one.get("error"))
        for one in reversed(found)
        if one.get("by_operator") and "took_s" in one
    ]
    assert told == [
        ("evict", b, None),
        ("load", b, None),
        ("pin", b, None),
        ("unload", b, None),
        ("load", a, "bad weights"),
        ("cordon", "", None),
    ]
    assert all(one["reason"].startswith("an operator asked") for one in found)
    assert sum("took_s" not in one for one in found) == len(told)
