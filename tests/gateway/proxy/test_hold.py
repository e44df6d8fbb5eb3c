"""Requests for models that are not loaded, and for nodes that changed their mind."""

import asyncio
import json

import msgspec
import pytest

from cortex_core.device import Device
from cortex_core.fleet.reducers import (
    from_endpoints,
    with_facts,
    with_load_failure,
    with_miss,
)
from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.node import NodeFacts
from cortex_core.replica import LoadProgress, ReplicaStatus
from cortex_core.routing.route import Wait
from cortex_core.sse import SseDecoder
from cortex_gateway.proxy.hold import describe
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import MODEL, NOW, TO_A, Gateway, ask, calling, gateway, replica
from tests.fakes.upstream import (
    DONE,
    ScriptedNode,
    Wire,
    answers,
    nodes,
    refuses,
    streams,
    words,
)
from tests.gateway.fleet import until_true

OK = answers(200, b'{"choices":[]}')
LOADING = ReplicaStatus.LOADING
QUICK = Timeouts(heartbeat_s=0.05)
SHORT = Timeouts(hold_s=0.2, heartbeat_s=0.05)


async def demanded(g: Gateway, count: int = 1) -> None:
    """Wait until so many requests are held."""
    await until_true(lambda: g.proxy.in_flight.requests >= count and MODEL in g.store.demanded())


async def test_plain_caller_is_held_silently_until_the_model_is_there() -> None:
    """Ours: a cold start is a slow answer, not an error."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING)], timeouts=QUICK) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(ask(g.url))
        await demanded(g)
        assert node.wires == []
        g.report("a", replica("a"))
        answer = await asked
        figures = await g.recorder.request()

    assert answer.status == 200
    assert answer.headers["x-cortex-cold-start"] == "true"
    assert int(answer.headers["x-cortex-load-ms"]) >= 0
    assert figures["is_cold_start"]
    assert figures["load_s"] > 0
    assert g.store.demanded() == frozenset()


async def test_streaming_caller_sees_the_load_go_on() -> None:
    """Ours: head and comments at once and in steps, then the stream as if nothing was."""
    progress = LoadProgress(stage="weights", done_bytes=1 << 30, total_bytes=2 << 30, eta_s=12.3)
    async with (
        nodes(node := ScriptedNode(streams(words(1)))),
        gateway({"a": node.url}, [replica("a", LOADING, progress=progress)], timeouts=QUICK) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        head = await caller.read_until(b"\r\n\r\n")
        first = await caller.read_until(b"\n\n")
        second = await caller.read_until(b"\n\n")
        g.report("a", replica("a"))
        rest = await caller.read_until(DONE)

    assert b"200" in head.split(b"\r\n")[0]
    assert b"text/event-stream" in head
    assert b"x-cortex-cold-start: true" in head
    for comment in (first, second):
        assert b": loading org/model: weights, 1024 of 2048 MiB, about 12 s left" in comment
    assert rest.endswith(DONE)
    assert b"error" not in rest


async def test_caller_that_is_not_patient_is_refused_at_once() -> None:
    """Contract: `x-cortex-cold-ok: false` never waits for a load."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING)]) as g,
    ):
        answer = await ask(g.url, headers={"x-cortex-cold-ok": "false"})

    assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("is_stream", [True, False])
async def test_hold_has_an_end(is_stream: bool) -> None:
    """Contract: loading longer than the wait is 503 `model_loading`, in a stream an event."""
    progress = LoadProgress(stage="weights", eta_s=20)
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING, progress=progress)], timeouts=SHORT) as g,
    ):
        answer = await ask(g.url, {"stream": is_stream})

    if is_stream:
        assert answer.status == 200
        events = [event.data for event in SseDecoder().feed(answer.body)]
        assert [json.loads(event)["error"]["code"] for event in events] == ["model_loading"]
    else:
        assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
        assert answer.headers["retry-after"] == "20"
    assert node.wires == []


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async, wait=0"])
async def test_caller_may_ask_for_less(prefer: str) -> None:
    """RFC 7240 section 4.3: `wait` bounds what the caller is willing to wait."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING)]) as g,
    ):
        answer = await ask(g.url, headers={"prefer": prefer})

    assert answer.json["error"]["code"] == "model_loading"


async def test_failed_load_is_told_to_a_caller_whose_head_is_out() -> None:
    """Contract: once 200 is out an error can only be an event."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING)], timeouts=QUICK) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        await caller.read_until(b"\r\n\r\n")
        await caller.read_until(b"\n\n")
        where = replica("a").id
        g.store.update(lambda state: with_load_failure(state, where, "bad weights", NOW()))
        g.report("a")
        await caller.read_until(b"data: ")
        event = await caller.read_until(b"\n\n")

    error = json.loads(event)["error"]
    assert error["code"] == "model_load_failed"
    assert "bad weights" in error["message"]


async def test_error_of_the_node_after_the_head_is_one_event() -> None:
    """Ours: the node's own error object, on one line."""
    body = b'{\n "error": {"message": "too long", "type": "invalid_request_error"}\n}'
    async with (
        nodes(node := ScriptedNode(answers(400, body))),
        gateway({"a": node.url}, [replica("a", LOADING)], timeouts=QUICK) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        await caller.read_until(b"\r\n\r\n")
        await caller.read_until(b"\n\n")
        g.report("a", replica("a"))
        await caller.read_until(b"data: ")
        event = await caller.read_until(b"\n\n")
        figures = await g.recorder.request()

    assert json.loads(event)["error"]["message"] == "too long"
    assert figures["outcome"] == "refused_by_node"


async def test_held_caller_that_leaves_is_forgotten() -> None:
    """Ours: nobody loads a model, or keeps a place, for a caller that is gone."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING)]) as g,
        calling(g.url, {"stream": False}) as caller,
    ):
        await demanded(g)
        caller.leave()
        figures = await g.recorder.request()

        assert g.store.demanded() == frozenset()
        assert figures["outcome"] == "client_gone"
        assert g.proxy.in_flight.requests == 0


async def test_long_prefill_has_heartbeats_too() -> None:
    """Ours: a streaming caller sees life while the engine reads a long prompt."""
    may_go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await may_go.wait()
        await streams(words(1))(wire)

    async with (
        nodes(node := ScriptedNode(script)),
        gateway({"a": node.url}, timeouts=QUICK) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        head = await caller.read_until(b"\r\n\r\n")
        for _ in range(3):
            assert b": waiting for org/model" in await caller.read_until(b"\n\n")
        may_go.set()
        rest = await caller.read_until(DONE)
        figures = await g.recorder.request()

    assert b"x-cortex-node: a" in head
    assert b"x-cortex-cold-start" not in head
    assert figures["outcome"] == "ok"
    assert rest.count(b": waiting") <= 1


async def test_heartbeats_do_not_commit_a_request_to_its_node() -> None:
    """Ours: only a node's own bytes do."""

    async def script(wire: Wire) -> None:
        await caller.read_until(b": waiting")
        wire.cut()

    async with (
        nodes(bad := ScriptedNode(script), good := ScriptedNode(streams(words(1)))),
        gateway({"a": bad.url, "b": good.url}, timeouts=QUICK) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        rest = await caller.read_until(DONE)
        figures = await g.recorder.request()

    assert b"error" not in rest
    assert figures["outcome"] == "ok"


async def test_refusal_of_a_neuron_is_not_the_callers_to_see() -> None:
    """Ours: the node is asked what it has, and another one serves meanwhile."""
    async with (
        nodes(a := ScriptedNode(refuses), b := ScriptedNode(OK)),
        gateway({"a": a.url, "b": b.url}) as g,
    ):
        answer = await ask(g.url, headers=TO_A)
        await g.refresh_asked("a")

    assert answer.status == 200
    assert answer.headers["x-cortex-node"] == "b"
    assert g.recorder.attempts == ["not_admitted", "ok"]
    assert g.store.state.breakers == {}


async def test_refused_request_waits_for_the_nodes_next_report() -> None:
    """Ours: with nowhere else to go the fresh report decides, here for the same node."""
    async with (
        nodes(node := ScriptedNode(refuses, OK)),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(ask(g.url))
        await g.refresh_asked("a")
        g.report("a", replica("a"))
        answer = await asked

    assert answer.status == 200
    assert len(node.wires) == 2
    assert "x-cortex-cold-start" not in answer.headers


async def test_refused_request_is_held_for_the_reload() -> None:
    """Ours: what was loaded and is not any more is waited for like any cold model."""
    async with (
        nodes(node := ScriptedNode(refuses, streams(words(1)))),
        gateway({"a": node.url}, timeouts=QUICK) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        await g.refresh_asked("a")
        g.report("a", replica("a", LOADING))
        await caller.read_until(b"it is loading on a")
        g.report("a", replica("a"))
        rest = await caller.read_until(DONE)
        figures = await g.recorder.request()

    assert b"error" not in rest
    assert figures["outcome"] == "ok"
    assert figures["is_cold_start"]


async def test_reports_that_contradict_refusals_are_believed_only_so_often() -> None:
    """Ours: a node that says loaded and refuses for ever costs a bounded number of rounds."""

    async def believe(g: Gateway) -> None:
        while True:
            await g.store.refresh_asked(NodeName("a"))
            g.report("a", replica("a"))

    async with (
        nodes(node := ScriptedNode(refuses)),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        believer = tasks.create_task(believe(g))
        answer = await ask(g.url)
        believer.cancel()

    assert (answer.status, answer.json["error"]["code"]) == (503, "no_replica")
    assert len(node.wires) == 10


async def test_waiters_are_served_together_when_the_model_is_there() -> None:
    """Ours: one report wakes all, and none is lost."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, [replica("a", LOADING)]) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [tasks.create_task(ask(g.url)) for _ in range(50)]
        await demanded(g, 50)
        g.report("a", replica("a"))

    assert {task.result().status for task in asked} == {200}
    assert len(node.wires) == 50


async def test_model_that_no_node_has_is_demanded() -> None:
    """Ours: a model of the catalogue that fits is waited for although nothing is under way."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, []) as g,
        asyncio.TaskGroup() as tasks,
    ):
        device = Device(index=DeviceIndex(0), name="SIM", vram_total_bytes=1 << 30)
        facts = NodeFacts(hostname="h", devices=(device,), harnesses=("simulated",))
        g.store.update(lambda state: with_facts(state, NodeName("a"), facts))
        asked = tasks.create_task(ask(g.url))
        await demanded(g)
        g.report("a", replica("a"))
        answer = await asked

    assert answer.status == 200


def test_progress_is_told_as_far_as_it_is_known() -> None:
    """Ours: what a node does not say is left out."""
    wait = Wait(model=MODEL, reason="it is loading on a")

    assert describe(wait) == "waiting for org/model: it is loading on a"


@pytest.mark.parametrize("model", [MODEL, "org/elsewhere"])
async def test_a_gateway_that_has_just_started_waits_for_its_nodes_to_speak(model: str) -> None:
    """Ours: neither 404 nor 503 for what a node is about to report."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, []) as g,
        asyncio.TaskGroup() as tasks,
    ):
        unheard = from_endpoints({NodeName("a"): node.url})
        g.store.update(lambda state: msgspec.structs.replace(unheard, revision=state.revision + 1))
        asked = tasks.create_task(ask(g.url, {"model": model}))
        await until_true(lambda: g.proxy.in_flight.requests == 1)
        g.report("a", replica("a", model=ModelId(model)))
        answer = await asked

    assert answer.status == 200


async def test_an_unknown_model_is_404_once_every_node_was_asked() -> None:
    """Ours: a node that does not answer was asked as well."""
    async with (
        nodes(node := ScriptedNode(OK)),
        gateway({"a": node.url}, []) as g,
        asyncio.TaskGroup() as tasks,
    ):
        unheard = from_endpoints({NodeName("a"): node.url})
        g.store.update(lambda state: msgspec.structs.replace(unheard, revision=state.revision + 1))
        asked = tasks.create_task(ask(g.url, {"model": "org/nowhere"}))
        await until_true(lambda: g.proxy.in_flight.requests == 1)
        g.store.update(lambda state: with_miss(state, NodeName("a"), "silent"))
        answer = await asked

    assert answer.status == 404
