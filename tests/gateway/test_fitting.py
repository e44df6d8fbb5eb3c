"""Asking all nodes whether a model would load, through a whole gateway."""

import pathlib
from contextlib import AsyncExitStack

from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.door import Door, door, write

A = "org/a"
TOO_BIG = {
    "ok": False,
    "checks": [{"name": "room", "verdict": "failed", "message": "it needs more"}],
}


async def _door(stack: AsyncExitStack, folder: pathlib.Path, **neurons: FakeNeuron) -> Door:
    for neuron in neurons.values():
        await stack.enter_async_context(running(neuron))
    urls = {name: neuron.url for name, neuron in neurons.items()}
    return await stack.enter_async_context(door(write(folder, urls, A)))


async def test_every_node_is_asked_with_what_would_load_the_model(tmp_path: pathlib.Path) -> None:
    """Issue 5: per node; fine when it fits somewhere."""
    one, two = FakeNeuron(), FakeNeuron()
    one.fits[A] = TOO_BIG
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, one=one, two=two)
        status, body = (await d.post("/admin/models/first/fit"))[:2]
        only = await d.post(f"/admin/models/{A}/fit?node=one")

    assert (status, body["model"], body["ok"]) == (200, A, True)
    assert [(node["node"], node["report"]["ok"]) for node in body["nodes"]] == [
        ("one", False),
        ("two", True),
    ]
    assert two.fits_asked[0]["harness"] == "simulated"
    assert (only[1]["ok"], len(only[1]["nodes"])) == (False, 1)
    assert one.loads == two.loads == []


async def test_model_of_no_catalogue_may_be_tried(tmp_path: pathlib.Path) -> None:
    """Ours: with the first harness of the node."""
    neuron = FakeNeuron()
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, beast=neuron)
        status, body = (await d.post("/admin/models/org/other/fit"))[:2]

    assert (status, body["model"], body["ok"]) == (200, "org/other", True)
    assert neuron.fits_asked[-1]["harness"] == "simulated"


async def test_node_that_cannot_say_says_why(tmp_path: pathlib.Path) -> None:
    """Ours: an older neuron, or none; the others answer."""
    old, new = FakeNeuron(), FakeNeuron()
    old.refusals["/models/fit"] = (404, {"error": {"message": "no", "code": "not_found"}})
    async with AsyncExitStack() as stack:
        d = await _door(stack, tmp_path, new=new, old=old)
        body = (await d.post(f"/admin/models/{A}/fit"))[1]
        unknown = await d.post(f"/admin/models/{A}/fit?node=nobody")

    assert [(node["node"], node["error"]) for node in body["nodes"]] == [
        ("new", None),
        ("old", "the neuron of old has no /models/fit; a newer one has"),
    ]
    assert body["ok"] is True
    assert unknown[0] == 404
