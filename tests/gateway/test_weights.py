"""Weights on the disks of nodes, through a whole gateway."""

import asyncio
import json
import pathlib
from contextlib import AsyncExitStack

from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.door import Door, door, write

A = "org/a"
ENTRY = {"id": A, "revisions": ["main"], "size_bytes": 5, "files": 2, "complete": True}


async def _door(stack: AsyncExitStack, folder: pathlib.Path, **neurons: FakeNeuron) -> Door:
    for neuron in neurons.values():
        await stack.enter_async_context(running(neuron))
    urls = {name: neuron.url for name, neuron in neurons.items()}
    return await stack.enter_async_context(door(write(folder, urls, A)))


async def delete(d: Door, path: str) -> tuple[int, dict[str, object]]:
    """Send a DELETE and return status and answer."""
    async with d.session.delete(d.url + path) as answer:
        return answer.status, await answer.json()


async def test_disk_of_a_node_is_told_as_its_neuron_tells_it(tmp_path: pathlib.Path) -> None:
    """Issue 5: GET /weights, through the gateway."""
    neuron = FakeNeuron()
    neuron.weights = {"models": [ENTRY], "disk": {"path": "/c", "used_bytes": 5}}
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, beast=neuron)
        body = await d.get("/admin/nodes/beast/weights")
        unknown = await d.get("/admin/nodes/nobody/weights")

    assert body["models"][0]["id"] == A
    assert body["models"][0]["size_bytes"] == 5
    assert body["disk"]["used_bytes"] == 5
    assert unknown["error"]["code"] == "not_found"


async def test_pull_and_removal_go_to_the_node_that_is_meant(tmp_path: pathlib.Path) -> None:
    """Ours: also with an alias, also for a model of no catalogue."""
    one, two = FakeNeuron(), FakeNeuron()
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, one=one, two=two)
        pulled = await d.post("/admin/nodes/two/weights/pull", {"model": "first"})
        other = await d.post("/admin/nodes/two/weights/pull?model=org/other&revision=v1&wait=false")
        misspelt = await d.post("/admin/nodes/two/weights/pull", {"model": A, "dryrun": True})
        removed = await delete(d, f"/admin/nodes/two/weights/{A}")

    assert pulled == (200, {**pulled[1], "id": A, "status": "ready"})
    assert other[0] == 202
    assert two.pulls == [
        {"model_id": A, "revision": "main"},
        {"model_id": "org/other", "revision": "v1"},
    ]
    assert one.pulls == []
    assert misspelt[0] == 400
    assert (removed[0], removed[1]["status"]) == (200, "removed")


async def test_stream_of_a_pull_tells_how_far_the_neuron_is(tmp_path: pathlib.Path) -> None:
    """Ours: as a load does."""
    neuron = FakeNeuron()
    neuron.pull_may_end.clear()
    coming = {"id": A, "revision": "main", "status": "downloading", "done_bytes": 1}
    neuron.weights = {"downloads": [{**coming, "id": "org/b"}, coming]}
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, beast=neuron)
        async with asyncio.TaskGroup() as tasks:
            path = f"/admin/nodes/beast/weights/pull?model={A}"
            events = tasks.create_task(d.events(path))
            await neuron.weights_asked.wait()
            neuron.pull_may_end.set()

    found = [(event.event, json.loads(event.data)) for event in events.result()]
    assert found[0][0] == "progress"
    assert found[0][1]["id"] == A
    assert found[0][1]["done_bytes"] == 1
    assert found[-1][0] == "done"
    assert found[-1][1]["status"] == "ready"


async def test_refusal_of_the_neuron_is_told(tmp_path: pathlib.Path) -> None:
    """Ours: full disks are not taken for full devices."""
    neuron = FakeNeuron()
    error = {"code": "insufficient_disk", "needed_bytes": 9, "free_bytes": 1, "message": "no room"}
    neuron.refusals["/weights/pull"] = (507, {"error": error})
    neuron.refusals["/weights"] = (409, {"error": {"code": "conflict", "message": "loaded"}})
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, beast=neuron)
        status, body = await d.post("/admin/nodes/beast/weights/pull", {"model": A})
        events = await d.events(f"/admin/nodes/beast/weights/pull?model={A}")
        removed = await delete(d, f"/admin/nodes/beast/weights/{A}")

    assert status == 507
    assert body["error"]["code"] == "insufficient_disk"
    assert body["error"]["needed_bytes"] == 9
    assert events[-1].event == "error"
    assert json.loads(events[-1].data)["error"]["message"] == "no room"
    assert removed[0] == 409
