"""Requests in line: who is next, who is turned away, and that no place is lost."""

import asyncio

import msgspec
import pytest

from cortex_core.errors import ModelLoadingError, OverloadedError
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.queue import MAX_RETRY_AFTER_S, Ticket
from cortex_core.routing.route import Refuse, RouteHints, Serve
from cortex_core.server.clock import SystemClock
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.settings import ApiSettings, GatewaySettings, QueueSettings, Timeouts
from tests.fakes.gate import ONE, Gate, in_line, is_empty, send
from tests.fakes.gateway import MODEL, NOW, ask, calling, gateway, replica
from tests.fakes.upstream import nodes
from tests.gateway.fleet import until_true

QUICK = Timeouts(heartbeat_s=0.05)
LOADING = ReplicaStatus.LOADING


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


async def test_a_line_that_is_never_empty_takes_new_bounds_too() -> None:
    """Reference: `[gateway.queue]` needs no restart."""

    def settings(max_waiting: int) -> GatewaySettings:
        return GatewaySettings(gateway=ApiSettings(queue=QueueSettings(max_waiting=max_waiting)))

    live = LiveSettings(settings(1))
    async with gateway({"a": "http://127.0.0.1:9"}, [replica("a", LOADING)]) as g:
        lines = Lines(
            store=g.store,
            in_flight=InFlight(),
            settings=live,
            clock=SystemClock(),
            random=lambda: 0.0,
        )

        async def stand(number: int) -> Serve | Refuse:
            ticket = Ticket(id=f"t{number}", caller="x", entered_at=NOW())
            turn = await lines.turn(MODEL, ticket, RouteHints(), deadline=NOW() + 20, beat=None)
            return turn.decision

        async with lines.running(), asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(stand(1))]
            await until_true(lambda: lines.waiting(MODEL) == 1)
            with pytest.raises(OverloadedError):
                await stand(2)
            live.current = settings(2)
            asked.append(tasks.create_task(stand(3)))
            await until_true(lambda: lines.waiting(MODEL) == 2)
            g.report("a", replica("a"))

    assert all(isinstance(task.result(), Serve) for task in asked)


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


async def test_the_advice_of_a_load_that_takes_longer_is_its_expected_time() -> None:
    """Issue: an honest `Retry-After`, also where the load itself does not say."""
    gate = Gate()
    loading = msgspec.structs.replace(replica("a", LOADING), load_s=42.0)
    async with nodes(gate.node), gateway({"a": gate.node.url}, [loading]) as g:
        answer = await ask(g.url, {"user": "x"}, headers={"prefer": "wait=0"})

    assert answer.json["error"]["code"] == ModelLoadingError.code
    assert answer.headers["retry-after"] == "42"
