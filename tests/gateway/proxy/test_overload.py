"""A neuron that is full: nothing is wrong with it, so another is tried, or it is waited for."""

import asyncio

import msgspec

from cortex_core.replica import ReplicaStatus
from tests.fakes.gate import in_line
from tests.fakes.gateway import MODEL, TO_A, Gateway, ask, gateway, replica
from tests.fakes.upstream import ScriptedNode, Wire, answers, nodes
from tests.gateway.fleet import until_true

OK = answers(200, b'{"choices":[]}')
ADVICE_S = 7


async def is_full(wire: Wire) -> None:
    """Refuse as a neuron does that has no place."""
    body = (
        b'{"error":{"message":"every place with it is taken","type":"server_error",'
        b'"param":null,"code":"server_is_overloaded"}}'
    )
    await wire.answer(503, body, x_cortex_not_admitted="1", retry_after=str(ADVICE_S))


def says(g: Gateway, node: str, in_flight: int) -> None:
    g.report(node, msgspec.structs.replace(replica(node), in_flight=in_flight))


def is_believed(g: Gateway, node: str) -> bool:
    """Return whether the node's replica is neither doubted nor left alone."""
    (found,) = [r for n, r in g.store.state.replicas_of(MODEL) if n.name == node]
    return found.status is ReplicaStatus.LOADED and not g.store.state.breakers


async def test_full_neuron_is_passed_over_and_not_doubted() -> None:
    """Ours: decision 4 is for replicas that are gone."""
    async with (
        nodes(a := ScriptedNode(is_full), b := ScriptedNode(OK)),
        gateway({"a": a.url, "b": b.url}) as g,
    ):
        answer = await ask(g.url, headers=TO_A)
        is_sound = is_believed(g, "a")

    assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
    assert is_sound
    assert g.recorder.attempts == ["overloaded", "ok"]


async def test_request_waits_in_line_until_the_full_neuron_reports_a_place() -> None:
    """Ours: the gateway's line is fair, and its callers get heartbeats there."""
    async with (
        nodes(node := ScriptedNode(is_full, OK)),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(ask(g.url))
        await in_line(g, 1)
        tried = len(node.wires)
        says(g, "a", 0)
        answer = await asked

    assert answer.status == 200
    assert tried == 1
    assert g.recorder.attempts == ["overloaded", "ok"]
    assert not g.proxy.in_flight.replicas


async def test_others_do_not_run_into_the_same_refusal() -> None:
    """Ours: what one request was told holds for all until the next report."""
    async with (
        nodes(node := ScriptedNode(is_full, OK, OK, OK)),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [tasks.create_task(ask(g.url))]
        await in_line(g, 1)
        asked += [tasks.create_task(ask(g.url)) for _ in range(2)]
        await in_line(g, 3)
        tried = len(node.wires)
        says(g, "a", 0)
        answers = [(await task).status for task in asked]

    assert tried == 1
    assert answers == [200] * 3


async def test_caller_whose_time_is_up_is_told_to_come_back() -> None:
    """Contract: queue full is 503 `server_is_overloaded` with `Retry-After`."""
    async with (
        nodes(node := ScriptedNode(is_full)),
        gateway({"a": node.url}) as g,
    ):
        answer = await ask(g.url, headers={"prefer": "wait=0"})
        is_sound = is_believed(g, "a")

    assert answer.status == 503
    assert msgspec.json.decode(answer.body)["error"]["code"] == "server_is_overloaded"
    assert int(answer.headers["retry-after"]) >= 1
    assert is_sound


async def test_neuron_that_refuses_although_it_reports_room_is_asked_ever_less_often() -> None:
    """Ours: as one does of whose queue the caller has its share."""
    async with (
        nodes(node := ScriptedNode(*[is_full] * 50)),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(ask(g.url, headers={"prefer": "wait=1"}))
        while not asked.done():
            says(g, "a", 0)
            await asyncio.sleep(0.01)
        answer = await asked
        await until_true(lambda: not g.proxy.in_flight.replicas)

    assert answer.status == 503
    # 0, 0.05, 0.1, 0.2 and 0.4 s after the first.
    assert 1 < len(node.wires) <= 6
