"""Requests that lose their engine before it said a word."""

import asyncio

import aiohttp

from cortex_core.replica import ReplicaStatus
from tests.fakes.gateway import MODEL, TO_A, Gateway, ask, gateway, replica
from tests.fakes.upstream import ScriptedNode, answers, loses_engine, nodes
from tests.gateway.fleet import until_true
from tests.gateway.responses.asking import events, pieces

OK = answers(200, b'{"choices":[]}')


async def demanded(g: Gateway, count: int = 1) -> None:
    """Wait until so many requests are held."""
    await until_true(lambda: g.proxy.in_flight.requests >= count and MODEL in g.store.demanded())


async def test_request_whose_engine_died_at_once_goes_to_another_node() -> None:
    """Issue: of which no byte has been seen; the caller sees nothing of it."""
    async with (
        nodes(a := ScriptedNode(loses_engine), b := ScriptedNode(OK)),
        gateway({"a": a.url, "b": b.url}) as g,
    ):
        answer = await ask(g.url, headers=TO_A)
        await g.refresh_asked("a")

    assert answer.status == 200
    assert answer.headers["x-cortex-node"] == "b"
    assert g.recorder.attempts == ["engine_died", "ok"]


async def test_stream_of_another_dialect_goes_on_at_another_node_too() -> None:
    """Issue: one response, whole, of which the first node's part is not to be seen."""
    body = {"model": MODEL, "input": "hi", "stream": True}
    async with (
        nodes(a := ScriptedNode(loses_engine), b := ScriptedNode(pieces({"content": "hello"}))),
        gateway({"a": a.url, "b": b.url}) as g,
        aiohttp.ClientSession() as session,
        session.post(f"{g.url}/v1/responses", json=body, headers=TO_A) as answer,
    ):
        seen = events(await answer.read())

    kinds = [event["type"] for event in seen]
    assert kinds.count("response.created") == kinds.count("response.completed") == 1
    assert kinds[-1] == "response.completed"
    assert seen[-1]["response"]["output"][0]["content"][0]["text"] == "hello"
    assert g.recorder.attempts == ["engine_died", "ok"]


async def test_request_waits_for_the_engine_that_it_lost() -> None:
    """Issue: with nowhere else to go it is sent to the same node when that serves again."""
    async with (
        nodes(node := ScriptedNode(loses_engine, OK)),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(ask(g.url))
        await g.refresh_asked("a")
        g.report("a", replica("a", ReplicaStatus.RECOVERING))
        await demanded(g)
        g.report("a", replica("a"))
        answer = await asked

    assert answer.status == 200
    assert g.recorder.attempts == ["engine_died", "ok"]


async def test_request_that_loses_two_engines_gets_no_third() -> None:
    """Reliability S10: it may be the reason; a 400 keeps clients from trying again."""
    async with (
        nodes(a := ScriptedNode(loses_engine), b := ScriptedNode(loses_engine)),
        gateway({"a": a.url, "b": b.url}) as g,
    ):
        answer = await ask(g.url)

    assert answer.status == 400
    assert answer.json["error"]["code"] == "request_rejected_after_engine_failure"
    assert g.recorder.attempts == ["engine_died", "engine_died"]
