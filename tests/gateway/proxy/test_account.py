"""Every request is counted once and told once, whatever became of it."""

import asyncio
import logging
from functools import partial

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cortex_core.fleet.reducers import with_report
from cortex_core.node import NodeReport
from cortex_core.replica import ReplicaStatus
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import MODEL, NOW, ask, calling, gateway, replica
from tests.fakes.upstream import (
    Script,
    ScriptedNode,
    Wire,
    answers,
    cuts,
    hangs,
    nodes,
    refuses,
    streams,
    words,
)

HASTY = Timeouts(first_byte_s=0.1, idle_s=0.1, hold_s=0.1, heartbeat_s=0.02)


async def breaks_off(wire: Wire) -> None:
    await wire.begin_stream()
    await wire.event(words(1)[0])
    wire.cut()


async def stalls(wire: Wire) -> None:
    await wire.begin_stream()
    await wire.event(words(1)[0])
    await wire.closed.wait()


async def large_and_cut(wire: Wire) -> None:
    await wire.head(content_type="application/json", content_length="1000000")
    await wire.send(b"{" + b" " * 500_000)
    wire.cut()


SCRIPTS: dict[str, Script] = {
    "streams": streams(words(3)),
    "answers": answers(200, b"{}"),
    "errs": answers(500, b'{"error":{}}'),
    "page": answers(500, b"<html>", content_type="text/html"),
    "cuts": cuts,
    "hangs": hangs,
    "refuses": refuses,
    "breaks off": breaks_off,
    "stalls": stalls,
    "large and cut": large_and_cut,
    "page with 200": answers(200, b"<html>", content_type="text/html"),
}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scripts=st.lists(st.sampled_from(sorted(SCRIPTS)), min_size=1, max_size=12),
    is_loaded=st.booleans(),
    data=st.data(),
)
async def test_counters_are_back_whatever_happens(
    scripts: list[str], is_loaded: bool, data: st.DataObject
) -> None:
    """Ours: one end for each request, and nothing in flight after the last."""
    leavers = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
    status = ReplicaStatus.LOADED if is_loaded else ReplicaStatus.LOADING
    chosen = [SCRIPTS[name] for name in scripts]
    a, b = ScriptedNode(*chosen), ScriptedNode(*reversed(chosen))

    async with (
        nodes(a, b),
        gateway(
            {"a": a.url, "b": b.url}, [replica("a"), replica("b", status)], timeouts=HASTY
        ) as g,
    ):
        async with asyncio.TaskGroup() as tasks:
            for number, leaves in enumerate(leavers):
                call = _leave if leaves else _stay
                tasks.create_task(call(g.url, is_stream=number % 2 == 0))
        await g.recorder.request(len(leavers) - 1)

    assert len(g.recorder.requests) == len(leavers)
    assert g.recorder.open == []
    assert (g.proxy.in_flight.requests, g.proxy.in_flight.retries) == (0, 0)
    assert not g.proxy.in_flight.replicas
    assert g.store.demanded() == frozenset()


async def _stay(url: str, *, is_stream: bool) -> None:
    try:
        await ask(url, {"stream": is_stream})
    except aiohttp.ClientError:
        return


async def _leave(url: str, *, is_stream: bool) -> None:
    async with calling(url, {"stream": is_stream}) as caller:
        await asyncio.sleep(0.02)
        caller.leave()


async def test_one_line_tells_a_request_and_nothing_of_its_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ours: ids, names, outcome and figures; no text of caller or engine."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    async with nodes(node := ScriptedNode(streams(words(3)))), gateway({"a": node.url}) as g:
        await ask(g.url, {"stream": True, "user": "secret-user"}, headers={"x-request-id": "r-1"})
        await g.recorder.request()

    lines = [record for record in caplog.records if record.name.startswith("cortex_gateway")]
    assert len(lines) == 1
    fields = vars(lines[0])
    assert fields["request_id"] == "r-1"
    assert fields["path"] == "/v1/chat/completions"
    assert (fields["model"], fields["node"]) == (MODEL, "a")
    assert (fields["outcome"], fields["status"], fields["stream"]) == ("ok", 200, True)
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (3, 3)
    assert fields["finish"] == "stop"
    assert fields["attempts"] == 1
    for name in ("queue_ms", "load_ms", "first_byte_ms", "ttft_ms", "total_ms"):
        assert fields[name] >= 0
    assert "secret" not in str(fields)
    assert "w0" not in str(fields)


async def test_caller_that_left_is_told_as_499(caplog: pytest.LogCaptureFixture) -> None:
    """Ours: nginx's number for it, whatever status was sent before."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    async with (
        nodes(node := ScriptedNode(stalls)),
        gateway({"a": node.url}) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        await caller.read_until(b"}\n\n")
        caller.leave()
        await g.recorder.request()

    line = vars(caplog.records[-1])
    assert (line["status"], line["outcome"]) == (499, "client_gone")


async def test_requests_are_use_although_a_neuron_reports_none() -> None:
    """Issue: whoever is used last gives way last; neurons of the given kind do not say."""
    where, long_ago = replica("a").id, NOW() - 60
    ok = answers(200, b'{"choices":[]}')
    async with nodes(node := ScriptedNode(ok)), gateway({"a": node.url}) as g:
        for held in ((), (replica("a"),)):
            report = NodeReport(replicas=held)
            g.store.update(partial(with_report, name=where.node, report=report, now=long_ago))
        before = g.store.state.resident(where)
        await ask(g.url)
        await g.recorder.request()
        after = g.store.state.resident(where)

    assert before is not None
    assert after is not None
    assert before.used == long_ago
    assert after.used > long_ago
    assert g.store.request_times()[MODEL] > 0
