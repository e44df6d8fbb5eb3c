"""Requests in line: who is next, who is turned away, and that no place is lost."""

import asyncio
import json

import msgspec
import pytest

from cortex_core.errors import ModelLoadingError, OverloadedError
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.queue import FIRST_RELEASE, MAX_RETRY_AFTER_S, Ticket
from cortex_core.routing.route import Refuse, RouteHints, Serve
from cortex_gateway.settings import QueueSettings, Timeouts
from tests.fakes.gateway import MODEL, NOW, Gateway, ask, calling, gateway, replica
from tests.fakes.upstream import ScriptedNode, Wire, nodes
from tests.gateway.fleet import until_true

ONE = QueueSettings(max_in_flight=1)
QUICK = Timeouts(heartbeat_s=0.05)
LOADING = ReplicaStatus.LOADING


class Gate:
    """A node that answers one request for every time that it is told to."""

    def __init__(self) -> None:
        self.node = ScriptedNode(self.script)
        self.order: list[str] = []
        self.open = 0
        self.most = 0
        self._may_end = asyncio.Semaphore(0)

    async def script(self, wire: Wire) -> None:
        self.order.append(json.loads(wire.body)["user"])
        self.open += 1
        self.most = max(self.most, self.open)
        await self._may_end.acquire()
        self.open -= 1
        await wire.answer(200, b'{"choices":[]}')

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._may_end.release()


async def send(g: Gateway, who: str, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await ask(
        g.url, {"user": who}, headers={"authorization": f"Bearer {who}", **names}, limit_s=30
    )
    return answer.status


async def in_line(g: Gateway, count: int) -> None:
    """Wait until so many requests are in line."""
    await until_true(lambda: g.proxy.lines.waiting(MODEL) == count)


def is_empty(g: Gateway) -> bool:
    flight = g.proxy.in_flight
    depths = any(flight.depths.values())
    return not (flight.replicas or depths or flight.requests or g.store.demanded())


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


async def test_a_runaway_caller_holds_up_another_by_a_turn() -> None:
    """Issue: fair between callers, by key."""
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE) as g,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(60):
            tasks.create_task(send(g, "runaway"))
        await in_line(g, 59)
        patient = tasks.create_task(send(g, "patient"))
        await in_line(g, 60)
        gate.let(61)
        assert await patient == 200

    assert gate.order.index("patient") <= 5


async def test_priority_is_a_share_and_not_a_right() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE) as g,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(send(g, "first"))
        await until_true(lambda: gate.open == 1)
        for who in ("low", "high"):
            for _ in range(40):
                tasks.create_task(send(g, who, x_cortex_priority=who))
        await in_line(g, 80)
        gate.let(81)
        await first

    half = gate.order[:41]
    assert half.count("high") > 4 * half.count("low") > 0


async def test_a_priority_that_is_no_word_of_ours_is_refused() -> None:
    gate = Gate()
    async with nodes(gate.node), gateway({"a": gate.node.url}) as g:
        answer = await ask(g.url, {"user": "x"}, headers={"x-cortex-priority": "11"})

    assert answer.status == 400
    assert answer.json["error"]["param"] == "x-cortex-priority"


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [("/v1/chat/completions", 503, "server_error"), ("/v1/messages", 529, "overloaded_error")],
)
async def test_a_full_line_turns_away_with_advice(path: str, status: int, kind: str) -> None:
    """Contract: `server_is_overloaded`, or 529 `overloaded_error`, with `Retry-After`."""
    gate = Gate()
    full = QueueSettings(max_in_flight=1, max_waiting=2, max_waiting_per_caller=2)
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=full) as g,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [tasks.create_task(send(g, "x")) for _ in range(3)]
        await in_line(g, 2)
        answer = await ask(g.url, {"user": "y", "max_tokens": 5}, path=path)
        gate.let(3)
        assert [await task for task in asked] == [200] * 3

    assert answer.status == status
    assert answer.json["error"]["type"] == kind
    assert 1 <= int(answer.headers["retry-after"]) <= MAX_RETRY_AFTER_S


async def test_one_caller_cannot_fill_the_line() -> None:
    gate = Gate()
    bounded = QueueSettings(max_in_flight=1, max_waiting=10, max_waiting_per_caller=2)
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=bounded) as g,
        asyncio.TaskGroup() as tasks,
    ):
        mine = [tasks.create_task(send(g, "greedy")) for _ in range(5)]
        await until_true(lambda: sum(task.done() for task in mine) == 2)
        other = tasks.create_task(send(g, "other"))
        await in_line(g, 3)
        gate.let(4)
        assert await other == 200

    assert sorted(task.result() for task in mine) == [200, 200, 200, 503, 503]


async def test_a_place_that_does_not_come_free_in_time_is_an_overload() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE) as g,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(send(g, "first"))
        await until_true(lambda: gate.open == 1)
        answer = await ask(g.url, {"user": "late"}, headers={"prefer": "wait=0"})
        gate.let()
        assert await first == 200

    assert (answer.status, answer.json["error"]["code"]) == (503, "server_is_overloaded")
    assert "retry-after" in answer.headers


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


@pytest.mark.parametrize("status", [LOADING, ReplicaStatus.UNLOADING])
async def test_who_wants_no_wait_for_a_load_is_told_at_once_though_others_wait(
    status: ReplicaStatus,
) -> None:
    """Issue: `x-cortex-cold-ok: false` asks for a refusal at once."""
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, [replica("a", status)]) as g,
        asyncio.TaskGroup() as tasks,
    ):
        patient = tasks.create_task(send(g, "patient"))
        await in_line(g, 1)
        refused = await ask(g.url, {"user": "x"}, headers={"x-cortex-cold-ok": "false"})
        g.report("a", replica("a"))
        gate.let()
        assert await patient == 200

    assert (refused.status, refused.json["error"]["code"]) == (503, "model_loading")


async def test_who_wants_no_wait_for_a_load_leaves_the_line_when_one_becomes_needed() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE) as g,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(send(g, "first"))
        await until_true(lambda: gate.open == 1)
        unwilling = tasks.create_task(send(g, "x", x_cortex_cold_ok="false"))
        patient = tasks.create_task(send(g, "patient"))
        await in_line(g, 2)
        g.report("a", replica("a", ReplicaStatus.UNLOADING))
        assert await unwilling == 503
        g.report("a", replica("a"))
        gate.let(2)
        assert [await first, await patient] == [200, 200]


async def test_who_leaves_the_line_is_forgotten_at_once() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE) as g,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(send(g, "first"))
        await until_true(lambda: gate.open == 1)
        async with calling(g.url, {"user": "gone"}):
            await in_line(g, 1)
        await in_line(g, 0)
        last = tasks.create_task(send(g, "last"))
        gate.let(2)
        assert [await first, await last] == [200, 200]
        await until_true(lambda: is_empty(g))

    assert gate.order == ["first", "last"]


async def test_a_streaming_caller_in_line_sees_that_it_is_heard() -> None:
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, queue=ONE, timeouts=QUICK) as g,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(send(g, "first"))
        await until_true(lambda: gate.open == 1)
        async with calling(g.url, {"user": "second", "stream": True}) as caller:
            head = await caller.read_until(b"\r\n\r\n")
            comment = await caller.read_until(b"\n\n")
        gate.let(2)
        await first

    assert b"cold-start" not in head
    assert b"every place with it is taken on a" in comment


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


async def test_the_advice_of_a_load_that_takes_longer_is_its_expected_time() -> None:
    """Issue: an honest `Retry-After`, also where the load itself does not say."""
    gate = Gate()
    async with (
        nodes(gate.node),
        gateway({"a": gate.node.url}, [replica("a", LOADING)]) as g,
    ):
        answer = await ask(g.url, {"user": "x"}, headers={"prefer": "wait=0"})

    assert answer.json["error"]["code"] == ModelLoadingError.code
    assert int(answer.headers["retry-after"]) >= 1
    assert OverloadedError.code == "server_is_overloaded"
