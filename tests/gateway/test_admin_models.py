"""What operators do to models, through a whole gateway."""

import asyncio
import json
import pathlib

import pytest

from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.door import Door, door, write
from tests.gateway.fleet import until_true

A, B = "org/a", "org/b"


async def test_a_model_is_loaded_where_a_request_would_have_it(tmp_path: pathlib.Path) -> None:
    """Issue: load, the node optional, idempotent; ids raw, encoded, or an alias."""
    neuron = FakeNeuron()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        first = await d.post(f"/admin/models/{A}/load")
        again = await d.post("/admin/models/org%2Fa/load")
        alias = await d.post("/admin/models/first/load")

    loaded = {"node": "beast", "status": "loaded", "changed": True, "reason": ""}
    assert first[0] == 200
    assert first[1]["nodes"][0] | loaded == first[1]["nodes"][0]
    assert (again[0], again[1]["nodes"][0]["changed"]) == (200, False)
    assert alias[1]["model"] == A
    assert [body["model_id"] for body in neuron.loads] == [A]


async def test_a_load_streams_how_far_it_is(tmp_path: pathlib.Path) -> None:
    """Issue: stage, bytes and ETA; the stream ends in `done`."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    progress = {"stage": "weights", "done_bytes": 1 << 30, "total_bytes": 1 << 31, "eta_s": 4.0}
    async with (
        running(neuron),
        door(write(tmp_path, {"beast": neuron.url}, A)) as d,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(d.events(f"/admin/models/{A}/load"))
        await until_true(lambda: A in neuron.models)
        neuron.set_model(A, "loading", progress=progress)
        # The stream is told before the load ends: one more report in between.
        await until_seen(d, "weights")
        neuron.load_may_end.set()
        await asked
    events = asked.result()

    assert {event.event for event in events[:-1]} == {"progress"}
    told = [json.loads(event.data) for event in events[:-1]]
    assert {"model": A, "node": "beast", "bytes_per_s": None, **progress} in told
    assert events[-1].event == "done"
    assert json.loads(events[-1].data)["nodes"][0]["status"] == "loaded"


async def until_seen(d: Door, stage: str) -> None:
    async with asyncio.timeout(5):
        while True:
            models = (await d.fleet())["beast"]["models"]
            if models and (models[0]["progress"] or {}).get("stage") == stage:
                return
            await asyncio.sleep(0.01)


async def test_a_load_that_fails_ends_its_stream_in_an_error(tmp_path: pathlib.Path) -> None:
    """Ours: and the same asked for without a stream is an error answer."""
    neuron = FakeNeuron()
    neuron.load_error = (500, {"error": {"message": "no weights", "code": "engine_error"}})
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        events = await d.events(f"/admin/models/{A}/load")
        there = await d.post(f"/admin/models/{A}/load", {"node": "beast"})
        anywhere = await d.post(f"/admin/models/{A}/load")

    assert events[-1].event == "error"
    assert "no weights" in json.loads(events[-1].data)["error"]["message"]
    assert (there[0], there[1]["error"]["message"]) == (500, "no weights")
    assert anywhere[1]["error"]["code"] == "model_load_failed"
    # Somebody who asks in person is not told to wait for the end of a cool-down.
    assert len(neuron.loads) == 3


async def test_a_gateway_that_goes_down_says_so_in_its_streams(tmp_path: pathlib.Path) -> None:
    """Contract: a cut stream never looks complete, and tells why it ends."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    async with (
        running(neuron),
        asyncio.TaskGroup() as tasks,
        door(write(tmp_path, {"beast": neuron.url}, A)) as d,
    ):
        asked = tasks.create_task(d.events(f"/admin/models/{A}/load"))
        await until_true(lambda: bool(neuron.loads))
        await until_loading(d)
    events = asked.result()

    assert events[-1].event == "error"
    assert json.loads(events[-1].data)["error"]["code"] == "draining"


async def until_loading(d: Door) -> None:
    async with asyncio.timeout(5):
        while not (await d.fleet())["beast"]["models"]:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.01)


async def test_a_load_on_a_node_goes_there(tmp_path: pathlib.Path) -> None:
    """Issue: the node optional; a second copy beside the one elsewhere."""
    one, two = FakeNeuron(), FakeNeuron()
    one.set_model(A, "loaded", vram_used_mb=8000)
    async with (
        running(one),
        running(two),
        door(write(tmp_path, {"one": one.url, "two": two.url}, A)) as d,
    ):
        status, answer = await d.post(f"/admin/models/{A}/load", node="two")
        again = await d.post(f"/admin/models/{A}/load", {"node": "two"}, node="two")

    assert (status, answer["nodes"][0]["node"]) == (200, "two")
    assert not again[1]["nodes"][0]["changed"]
    assert (one.loads, [body["model_id"] for body in two.loads]) == ([], [A])


@pytest.mark.parametrize("body", [{}, {"node": "beast"}, {"wait": False}])
async def test_a_neuron_hears_that_somebody_asks_in_person(
    tmp_path: pathlib.Path, body: dict[str, object]
) -> None:
    """Ours: it loads what it has given up for nobody else."""
    neuron = FakeNeuron()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        status, _ = await d.post(f"/admin/models/{A}/load", body)
        await until_true(lambda: bool(neuron.loads))

    assert status in (200, 202)
    assert [asked.get("automatic", False) for asked in neuron.loads] == [False]


async def test_a_load_on_a_node_makes_room_there(tmp_path: pathlib.Path) -> None:
    """Issue: as the planner would, with the victims it names beforehand."""
    neuron = FakeNeuron()
    neuron.set_model(B, "loaded", vram_used_mb=20000)
    models = [{"id": m, "harness": "simulated", "vram_mb": 20000} for m in (A, B)]
    at_once = "[eviction]\nmin_residency_s = 0.0"
    async with (
        running(neuron),
        door(write(tmp_path, {"beast": neuron.url}, *models, more=at_once)) as d,
    ):
        foreseen = await d.post(f"/admin/models/{A}/load", node="beast", dry_run="true")
        assert (neuron.loads, neuron.unloads) == ([], [])
        status, _ = await d.post(f"/admin/models/{A}/load", node="beast")

    (outcome,) = foreseen[1]["nodes"]
    assert (foreseen[1]["dry_run"], outcome["status"], outcome["victims"]) == (True, "evict", [B])
    assert status == 200
    assert [body["model_id"] for body in neuron.unloads] == [B]
    assert [body["model_id"] for body in neuron.loads] == [A]


@pytest.mark.parametrize("query", [{}, {"node": "beast"}])
async def test_what_sleeps_is_woken_rather_than_loaded(
    tmp_path: pathlib.Path, query: dict[str, str]
) -> None:
    """Issue: waking comes before loading; others give way to it as to a load."""
    neuron = FakeNeuron()
    neuron.set_model(A, "sleeping", sleep_level=1)
    neuron.set_model(B, "loaded", vram_used_mb=20000)
    models = [{"id": m, "harness": "simulated", "vram_mb": 20000} for m in (A, B)]
    at_once = "[eviction]\nmin_residency_s = 0.0"
    async with (
        running(neuron),
        door(write(tmp_path, {"beast": neuron.url}, *models, more=at_once)) as d,
    ):
        status, answer = await d.post(f"/admin/models/{A}/load", **query)

    assert (status, answer["nodes"][0]["node"]) == (200, "beast")
    assert neuron.loads == []
    assert [path for path, body in neuron.commands if body["model_id"] == A] == ["/models/wake"]
    assert [body["model_id"] for body in neuron.unloads] == [B]


async def test_a_wait_that_leads_nowhere_ends(tmp_path: pathlib.Path) -> None:
    """Ours: `gateway.timeouts.load_s` bounds what goes before a load as well."""
    neuron = FakeNeuron()
    neuron.set_model(A, "unloading")
    brief = "[gateway.timeouts]\nload_s = 0.2"
    async with (
        running(neuron),
        door(write(tmp_path, {"beast": neuron.url}, A, more=brief)) as d,
    ):
        there, on_node = await d.post(f"/admin/models/{A}/load", node="beast")
        anywhere, at_large = await d.post(f"/admin/models/{A}/load")

    assert (there, on_node["error"]["code"]) == (503, "model_loading")
    assert (anywhere, at_large["error"]["code"]) == (503, "model_loading")
    assert neuron.loads == []


async def test_who_does_not_wait_is_told_at_once_and_the_load_goes_on(
    tmp_path: pathlib.Path,
) -> None:
    """Issue: 202 with `wait=false`."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A, B)) as d:
        status, answer = await d.post(f"/admin/models/{A}/load", wait="false")
        await until_true(lambda: bool(neuron.loads))
        neuron.load_may_end.set()
        await d.post(f"/admin/models/{A}/load")
        again, _ = await d.post(f"/admin/models/{A}/load", {"wait": False})

    assert (status, answer["nodes"][0]["status"], again) == (202, "loading", 200)


async def test_a_model_sleeps_wakes_and_leaves_wherever_it_is(tmp_path: pathlib.Path) -> None:
    """Issue: without a node, on every node that has it; each command is idempotent."""
    one, two = FakeNeuron(), FakeNeuron()
    for neuron in (one, two):
        neuron.set_model(A, "loaded", vram_used_mb=8000)
    async with (
        running(one),
        running(two),
        door(write(tmp_path, {"one": one.url, "two": two.url}, A)) as d,
    ):
        foreseen = await d.post(f"/admin/models/{A}/sleep", {"dry_run": True})
        assert (one.commands, two.commands) == ([], [])
        asleep = await d.post(f"/admin/models/{A}/sleep", level="2")
        still = await d.post(f"/admin/models/{A}/sleep", {"level": 2})
        awake = await d.post(f"/admin/models/{A}/wake", node="one")
        gone = await d.post(f"/admin/models/{A}/unload")
        nowhere = await d.post(f"/admin/models/{A}/unload")

    assert [(n["node"], n["changed"]) for n in foreseen[1]["nodes"]] == [
        ("one", True),
        ("two", True),
    ]
    assert [n["status"] for n in asleep[1]["nodes"]] == ["sleeping", "sleeping"]
    assert [n["changed"] for n in still[1]["nodes"]] == [False, False]
    assert [n["status"] for n in awake[1]["nodes"]] == ["loaded"]
    assert [n["status"] for n in gone[1]["nodes"]] == ["unloaded", "unloaded"]
    assert (nowhere[0], nowhere[1]["nodes"]) == (200, [])
    drain = {"drain_timeout_s": 300.0}
    assert one.commands == [
        ("/models/sleep", {"model_id": A, "level": 2, **drain}),
        ("/models/wake", {"model_id": A}),
    ]
    assert two.commands == [("/models/sleep", {"model_id": A, "level": 2, **drain})]
    assert [body["model_id"] for body in one.unloads + two.unloads] == [A, A]


async def test_pins_are_kept_by_the_neuron(tmp_path: pathlib.Path) -> None:
    """Ours: all gateways agree, and a pin may come before its model."""
    neuron = FakeNeuron()
    neuron.set_model(A, "loaded")
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A, B)) as d:
        pinned = await d.post(f"/admin/models/{A}/pin")
        again = await d.post(f"/admin/models/{A}/pin")
        early = await d.post(f"/admin/models/{B}/pin", node="beast")
        nowhere = await d.post(f"/admin/models/{B}/pin")
        off = await d.post(f"/admin/models/{A}/unpin")

    assert (pinned[1]["nodes"][0]["changed"], again[1]["nodes"][0]["changed"]) == (True, False)
    assert early[0] == 200
    assert (nowhere[0], nowhere[1]["error"]["code"]) == (409, "conflict")
    assert off[1]["nodes"][0]["status"] == "unpinned"
    bodies = [(body["model_id"], body["pinned"]) for _, body in neuron.commands]
    assert bodies == [(A, True), (B, True), (A, False)]


async def test_what_one_node_refuses_is_told_with_what_the_others_did(
    tmp_path: pathlib.Path,
) -> None:
    """Ours: a refusal passes its reason and status through; no success where something failed."""
    one, two = FakeNeuron(), FakeNeuron()
    for neuron in (one, two):
        neuron.set_model(A, "loaded")
    two.refusals["/models/sleep"] = (409, {"error": {"message": "it cannot sleep"}})
    async with (
        running(one),
        running(two),
        door(write(tmp_path, {"one": one.url, "two": two.url}, A)) as d,
    ):
        both = await d.post(f"/admin/models/{A}/sleep")
        single = await d.post(f"/admin/models/{A}/sleep", node="two")

    assert (both[0], both[1]["error"]["message"]) == (409, "one: sleeping; two: it cannot sleep")
    assert (single[0], single[1]["error"]["message"]) == (409, "it cannot sleep")


@pytest.mark.parametrize(
    ("path", "query", "status", "says"),
    [
        ("/admin/models/org/none/load", {}, 404, "org/none"),
        ("/admin/models/org/a/unload", {"node": "none"}, 404, "there is no node 'none'"),
        ("/admin/models/org/a/sleep", {}, 409, "no node has org/a"),
        ("/admin/models/org/a/sleep", {"node": "beast", "level": "3"}, 400, "3"),
        ("/admin/models/org/a/unload", {"dryrun": "true"}, 400, "dryrun"),
        ("/admin/nodes/none/cordon", {}, 404, "there is no node 'none'"),
        ("/admin/nodes/hosted/cordon", {}, 409, "upstream"),
        ("/admin/models/big/unload", {}, 409, "upstream"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    tmp_path: pathlib.Path, path: str, query: dict[str, str], status: int, says: str
) -> None:
    """Issue: unknown node or model 404; and nothing is done by a slip of the pen."""
    neuron = FakeNeuron()
    upstream = (
        '[[upstreams]]\nname = "hosted"\ndialect = "openai"\n'
        'base_url = "http://127.0.0.1:9"\nmodels = { big = "theirs" }\n'
    )
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A, more=upstream)) as d:
        told, body = await d.post(path, **query)

    assert (told, says in body["error"]["message"]) == (status, True), body
    assert (neuron.unloads, neuron.commands) == ([], [])


async def test_a_neuron_of_the_given_kind_says_that_it_cannot(tmp_path: pathlib.Path) -> None:
    """Ours: what it lacks is told as such, and what it has works."""
    neuron = FakeNeuron(is_given_only=True)
    neuron.set_model(A, "loaded")
    async with running(neuron), door(write(tmp_path, {"old": neuron.url}, A)) as d:
        asleep = await d.post(f"/admin/models/{A}/sleep")
        cordoned = await d.post("/admin/nodes/old/cordon")
        gone = await d.post(f"/admin/models/{A}/unload")

    assert (asleep[0], asleep[1]["error"]["code"]) == (409, "conflict")
    assert "the neuron of old has no /models/sleep" in asleep[1]["error"]["message"]
    assert cordoned[0] == 409
    assert gone[0] == 200
