"""Places with replicas: counted once, free at once, and never more than there are."""

import asyncio

import msgspec

from cortex_core.replica import ReplicaStatus
from cortex_core.routing.queue import FIRST_RELEASE, Ticket
from cortex_core.routing.route import Refuse, RouteHints, Serve
from cortex_gateway.settings import QueueSettings
from tests.fakes.gate import ONE, Gate, in_line, is_empty, send
from tests.fakes.gateway import MODEL, NOW, gateway, replica
from tests.fakes.upstream import nodes
from tests.gateway.fleet import until_true

LOADING = ReplicaStatus.LOADING


async def test_a_place_is_free_when_its_request_ends_whatever_the_last_report_said() -> None:
    """Ours: a report counts the requests of its moment, and the next one may be a second away."""
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE) as g,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(send(g, "first"))
        await until_true(lambda: gate.open == 1)
        g.report("a", msgspec.structs.replace(replica("a"), in_flight=1))
        gate.let(2)
        await first
        await until_true(lambda: not g.proxy.in_flight.replicas)
        assert await send(g, "second", prefer="wait=0") == 200


async def test_what_is_counted_of_a_node_goes_with_it() -> None:
    gate, a = Gate(), replica("a").id
    busy = msgspec.structs.replace(replica("a"), in_flight=2)
    async with nodes(gate.node), gateway({"a": gate.node.url}, [busy]) as g:
        await until_true(lambda: g.proxy.in_flight.depths == {a: 2})
        g.store.forget(a.node)
        await until_true(lambda: not g.proxy.in_flight.depths)


async def test_requests_of_other_gateways_take_places_too() -> None:
    """Issue: two gateways on one fleet admit no more than one would."""
    gate = Gate()
    busy = msgspec.structs.replace(replica("a"), in_flight=2)
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, [busy], queue=QueueSettings(max_in_flight=3)) as g,
        asyncio.TaskGroup() as tasks,
    ):
        await until_true(lambda: bool(g.proxy.in_flight.depths))
        asked = [tasks.create_task(send(g, "x")) for _ in range(3)]
        await in_line(g, 2)
        await until_true(lambda: gate.open == 1)
        alone = gate.most
        g.report("a", replica("a"))
        await until_true(lambda: gate.open == 3)
        gate.let(3)
        assert [await task for task in asked] == [200] * 3

    assert alone == 1


async def test_a_place_given_to_somebody_who_leaves_at_that_moment_is_not_lost() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, [replica("a", LOADING)], queue=ONE) as g,
    ):
        lines = g.proxy.lines

        async def stand(number: int) -> Serve | Refuse:
            ticket = Ticket(id=f"t{number}", caller="x", entered_at=NOW())
            turn = await lines.turn(MODEL, ticket, RouteHints(), deadline=NOW() + 20, beat=None)
            return turn.decision

        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(stand(1))
            staying = tasks.create_task(stand(2))
            await in_line(g, 2)
            g.report("a", replica("a"))
            await until_true(lambda: len(g.proxy.in_flight.replicas) == 1 or staying.done())
            leaving.cancel()
            decision = await staying

    assert isinstance(decision, Serve)
    assert not g.proxy.in_flight.replicas


async def test_a_replica_gets_no_more_than_it_runs_and_all_are_answered() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=QueueSettings(max_in_flight=3)) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [tasks.create_task(send(g, "x")) for _ in range(20)]
        await in_line(g, 17)
        await until_true(lambda: gate.open == 3)
        gate.let(20)
        answers = [await task for task in asked]
        await until_true(lambda: is_empty(g))

    assert answers == [200] * 20
    assert gate.most == 3


async def test_what_waited_for_a_load_is_let_in_at_a_ramp() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, [replica("a", LOADING)]) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [tasks.create_task(send(g, "x")) for _ in range(40)]
        await in_line(g, 40)
        g.report("a", replica("a"))
        await until_true(lambda: gate.open >= FIRST_RELEASE)
        at_first = gate.most
        await until_true(lambda: gate.most == 40)
        gate.let(40)
        answers = [await task for task in asked]

    assert answers == [200] * 40
    assert at_first <= 2 * FIRST_RELEASE
