"""What operators do to nodes, through a whole gateway."""

import asyncio
import pathlib
from collections.abc import Awaitable

import pytest

from cortex_core.errors import UpstreamError
from cortex_core.fleet.state import NodeHealth
from cortex_core.ids import NodeName
from cortex_core.wire.admin import Action, ModelCommand
from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.door import Door, door, write
from tests.gateway.fleet import MODEL, is_health, operated, until, until_true

A, B, C = "org/a", "org/b", "org/c"


async def used(d: Door, neuron: FakeNeuron, model: str) -> None:
    """Have a model reported as used since the gateway saw it first."""
    neuron.set_model(model, "loaded", vram_used_mb=8000, last_used=7.0)
    before = (await d.get("/admin/fleet"))["revision"]
    neuron.tell_health()
    async with asyncio.timeout(5):
        while (await d.get("/admin/fleet"))["revision"] <= before:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.01)


async def test_a_node_is_cordoned_and_takes_models_again(tmp_path: pathlib.Path) -> None:
    """Issue: idempotent; the neuron keeps it, so that every gateway sees it."""
    neuron = FakeNeuron()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        foreseen = await d.post("/admin/nodes/beast/cordon", dry_run="true")
        assert not neuron.is_cordoned
        first = await d.post("/admin/nodes/beast/cordon")
        seen = (await d.fleet())["beast"]["cordoned"]
        again = await d.post("/admin/nodes/beast/cordon")
        off = await d.post("/admin/nodes/beast/uncordon")

    said = {"node": "beast", "status": "cordoned", "changed": True, "dry_run": False}
    assert foreseen == (200, {**said, "dry_run": True})
    assert (first, again) == ((200, said), (200, {**said, "changed": False}))
    assert seen
    assert off[1]["status"] == "uncordoned"
    assert not neuron.is_cordoned


async def test_a_drained_node_hands_over_what_is_in_use_first(tmp_path: pathlib.Path) -> None:
    """Ours: served elsewhere before it goes here; what nobody uses goes at once."""
    one, two = FakeNeuron(), FakeNeuron()
    two.load_may_end.clear()
    for model in (A, B):
        one.set_model(model, "loaded", vram_used_mb=8000)
    nodes = {"one": one, "two": two}
    async with running(one), running(two):
        urls = {name: neuron.url for name, neuron in nodes.items()}
        async with door(write(tmp_path, urls, A, B)) as d, asyncio.TaskGroup() as tasks:
            await used(d, one, A)
            foreseen = await d.post("/admin/nodes/one/drain", dry_run="true")
            assert (one.is_cordoned, one.unloads, two.loads) == (False, [], [])
            drain = tasks.create_task(d.post("/admin/nodes/one/drain"))
            await until_true(lambda: bool(two.loads) and bool(one.unloads))
            assert [body["model_id"] for body in one.unloads] == [B]
            two.load_may_end.set()
            status, answer = await drain

    outcomes = [(m["model"], m["outcome"], m["to"]) for m in answer["models"]]
    assert (status, outcomes) == (200, [(A, "moved", "two"), (B, "unloaded", None)])
    assert foreseen[1]["models"] == answer["models"]
    assert answer["drained"]
    assert one.is_cordoned
    assert one.models == {}
    assert [body["model_id"] for body in two.loads] == [A]


async def test_what_cannot_leave_stays_with_the_reason(tmp_path: pathlib.Path) -> None:
    """Ours: a pinned model, one that has no other home, and one whose load elsewhere fails."""
    one, two = FakeNeuron(), FakeNeuron()
    two.load_error = (500, {"error": {"message": "no weights there"}})
    models = [
        {"id": A, "harness": "simulated", "vram_mb": 8000},
        {"id": B, "harness": "simulated", "vram_mb": 8000, "pinned_on": ["one"]},
        {"id": C, "harness": "simulated", "vram_mb": 99999},
    ]
    for model in (A, B, C):
        one.set_model(model, "loaded", vram_used_mb=8000)
    async with running(one), running(two):
        urls = {"one": one.url, "two": two.url}
        async with door(write(tmp_path, urls, *models)) as d:
            await used(d, one, A)
            await used(d, one, C)
            status, answer = await d.post("/admin/nodes/one/drain")

    reasons = {m["model"]: (m["outcome"], m["reason"]) for m in answer["models"]}
    assert (status, answer["drained"]) == (200, False)
    assert reasons[A] == ("stays", "no weights there")
    assert reasons[B] == ("stays", "it is pinned there")
    assert reasons[C][0] == "stays"
    assert "two: it needs 1 device(s)" in reasons[C][1]
    assert one.unloads == []


async def test_a_command_to_a_node_that_is_down_says_so() -> None:
    """Issue: 502, at once; one that goes down meanwhile ends the wait for its answer."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")
    neuron.unload_may_end.clear()
    async with running(neuron), operated({"beast": neuron.url}) as control:
        await until(control.store, is_health("beast", NodeHealth.UP))
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(_refusal(control.operations.perform(
                Action.UNLOAD, MODEL, ModelCommand()
            )))  # fmt: skip
            await until_true(lambda: bool(neuron.unloads))
            neuron.hidden_paths |= {"/health", "/models"}
            neuron.end_events()
            cut = await asked
        down = await _refusal(
            control.operations.cordon(NodeName("beast"), is_cordoned=True, dry_run=False)
        )
        state = control.store.state

    assert (type(cut), cut.status) == (UpstreamError, 502)
    assert "beast is down" in down.message
    assert state.unloads == frozenset()


async def test_a_command_is_seen_through_although_who_gave_it_leaves() -> None:
    """Ours: half an unload helps nobody, and the planner must know of it to its end."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")
    neuron.unload_may_end.clear()
    async with running(neuron), operated({"beast": neuron.url}) as control:
        state = await until(control.store, is_health("beast", NodeHealth.UP))
        work = control.operations.perform(Action.UNLOAD, MODEL, ModelCommand())
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(work)
            await until_true(lambda: bool(neuron.unloads))
            asked.cancel()
        assert control.store.state.unloads
        neuron.unload_may_end.set()
        state = await until(control.store, lambda state: not state.unloads)

    assert MODEL not in state.nodes[NodeName("beast")].replicas


async def _refusal(work: Awaitable[object]) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await work
    return caught.value
