"""Large requests of other dialects: translated like small ones, beside the loop."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cortex_core.errors import OverloadedError
from cortex_gateway.proxy.aside import LARGE_BYTES, Aside, Threads
from tests.fakes.gateway import TO_A, ask, gateway
from tests.fakes.upstream import ScriptedNode, nodes, refuses, streams, words
from tests.gateway.proxy.test_messages import document, pdf
from tests.gateway.responses.asking import completion
from tests.server.harness import eventually

TURNS = 600
TEXT = "word " * 100

SAID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "developer", "content": TEXT}, *[{"role": "user", "content": TEXT}]]
    },
    "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": TEXT}]},
    "/v1/responses": {"input": [{"role": "user", "content": TEXT}], "store": False},
    "/api/chat": {"messages": [{"role": "user", "content": TEXT}]},
}
"""Requests of one turn, by path."""


WRONG: dict[str, dict[str, Any]] = {
    "/v1/messages": {"temperature": 2},
    "/v1/responses": {"input": [{"type": "nonsense"}]},
}
"""What each path refuses in the thread."""


def of_turns(path: str, turns: int) -> dict[str, Any]:
    """Return a request of so many turns, by two in turn."""
    key = "input" if path == "/v1/responses" else "messages"
    before = SAID[path][key]
    more = [
        {"role": "user" if number % 2 else "assistant", "content": TEXT} for number in range(turns)
    ]
    return {**SAID[path], "stream": True, key: [*before, *more]}


def with_one_text(messages: Any) -> list[tuple[str, str]]:
    """Return role and text of messages, whose contents are text or parts."""
    return [
        (
            message["role"],
            message["content"]
            if isinstance(message["content"], str)
            else "".join(part["text"] for part in message["content"]),
        )
        for message in messages
    ]


@pytest.mark.parametrize("path", SAID)
async def test_what_is_large_is_sent_like_what_is_small(path: str) -> None:
    """Ours: a node cannot tell where it was translated."""
    large = of_turns(path, 2 * TURNS)
    assert len(json.dumps(large)) > LARGE_BYTES
    async with nodes(node := ScriptedNode(streams(words(2)))), gateway({"a": node.url}) as g:
        answers = [await ask(g.url, fields, path=path) for fields in (of_turns(path, 0), large)]

    assert [answer.status for answer in answers] == [200, 200]
    small, sent = (json.loads(wire.body) for wire in node.wires)
    begin, whole = with_one_text(small.pop("messages")), with_one_text(sent.pop("messages"))
    assert sent == small
    assert whole == begin + [("user" if n % 2 else "assistant", TEXT) for n in range(2 * TURNS)]


@pytest.mark.parametrize("path", WRONG)
async def test_what_is_large_and_wrong_is_refused_alike(path: str) -> None:
    """Ours: an error crosses the thread as it is."""
    async with nodes(node := ScriptedNode(streams(words(1)))), gateway({"a": node.url}) as g:
        told = []
        for turns in (0, 2 * TURNS):
            fields = of_turns(path, turns)
            for name, value in WRONG[path].items():
                fields[name] = [*value, *fields[name]] if isinstance(value, list) else value
            answer = await ask(g.url, fields, path=path)
            told.append((answer.status, json.loads(answer.body)["error"]["message"]))

    assert told[0] == told[1]
    assert told[0][0] == 400
    assert not node.wires


@pytest.mark.parametrize("path", SAID)
async def test_what_is_large_is_sent_again_as_it_was(path: str) -> None:
    """Ours: what another attempt is sent is made beside the loop as well."""
    large = of_turns(path, 2 * TURNS)
    async with (
        nodes(a := ScriptedNode(refuses), b := ScriptedNode(streams(words(2)))),
        gateway({"a": a.url, "b": b.url}) as g,
    ):
        answer = await ask(g.url, large, path=path, headers=TO_A)

    bodies = [wire.body for node in (a, b) for wire in node.wires]
    assert answer.status == 200
    assert bodies == [bodies[0]] * 2


async def test_what_is_large_may_be_made_in_the_background() -> None:
    """Ours: whether it is to be is read off the request, of which some have the word elsewhere."""
    large = of_turns("/v1/responses", 2 * TURNS)
    asked = [{**large, "stream": False, **more} for more in ({}, {"background": False})]
    asked.append({**asked[0], "background": True, "store": True})
    async with (
        nodes(node := ScriptedNode(*[completion()] * 3)),
        gateway({"a": node.url}) as g,
    ):
        told = [await ask(g.url, fields, path="/v1/responses") for fields in asked]
        await node.request(2)

    assert [answer.status for answer in told] == [200, 200, 200]
    assert [answer.json["status"] for answer in told] == ["completed", "completed", "queued"]


async def test_large_request_that_cannot_be_read_is_counted() -> None:
    """Ours: as a small one is."""
    wrong = {**of_turns("/v1/responses", 2 * TURNS), "model": 5}
    async with nodes(node := ScriptedNode()), gateway({"a": node.url}) as g:
        answer = await ask(g.url, wrong, path="/v1/responses")
        figures = await g.recorder.request()

    assert (answer.status, answer.json["error"]["param"]) == (400, "model")
    assert figures["outcome"] == "invalid_request_error"


@pytest.fixture
def aside() -> Aside:
    return Aside()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Yield what holds threads up until it is set, which it is in the end."""
    event = threading.Event()
    yield event
    event.set()


async def test_slow_documents_hold_up_nothing_but_documents(gate: threading.Event) -> None:
    """Issue: nothing on the request path grows without bound, or starves something else."""
    asked = {"max_tokens": 5, "stream": True, **document(pdf("Grey geese."))}
    async with (
        nodes(node := ScriptedNode(streams(words(1)), streams(words(1)))),
        gateway({"a": node.url}) as g,
    ):
        documents = g.proxy.aside.documents
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(documents.run(16, gate.wait))
            await eventually(lambda: documents.pending == 16)
            large = await ask(g.url, of_turns("/v1/messages", 2 * TURNS), path="/v1/messages")
            refused = await ask(g.url, asked, path="/v1/messages")
            gate.set()
        served = await ask(g.url, asked, path="/v1/messages")

    assert [large.status, refused.status, served.status] == [200, 529, 200]
    assert refused.json["error"]["type"] == "overloaded_error"
    assert "retry-after" in refused.headers
    assert len(node.wires) == 2


@pytest.mark.parametrize("path", SAID)
async def test_too_many_large_requests_are_refused(path: str, gate: threading.Event) -> None:
    """Issue: as above."""
    async with (
        nodes(node := ScriptedNode(streams(words(1)))),
        gateway({"a": node.url}) as g,
        asyncio.TaskGroup() as tasks,
    ):
        large = g.proxy.aside.large
        tasks.create_task(large.run(256 << 20, gate.wait))
        await eventually(lambda: large.pending > 0)
        refused = await ask(g.url, of_turns(path, 2 * TURNS), path=path)
        small = await ask(g.url, of_turns(path, 0), path=path)
        gate.set()

    assert refused.status == (529 if path == "/v1/messages" else 503)
    assert b"too many large requests" in refused.body
    assert small.status == 200
    assert g.recorder.requests[0]["outcome"] == "server_is_overloaded"


async def test_what_is_larger_than_the_line_is_worked_on_alone() -> None:
    """Ours: a limit on bodies may be above that of the line."""
    threads = Threads("bodies", threads=1, most=10)

    assert await threads.run(11, lambda: "done") == "done"


async def test_who_leaves_the_line_is_not_worked_for(gate: threading.Event) -> None:
    """Ours: work for callers who have left would keep others waiting."""
    begun: list[str] = []
    threads = Threads("bodies", threads=1, most=10)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(threads.run(5, gate.wait))
        await eventually(lambda: threads.pending == 5)
        left = tasks.create_task(threads.run(5, begun.append, "left"))
        await eventually(lambda: threads.pending == 10)
        left.cancel()
        await eventually(lambda: threads.pending == 5)
        gate.set()
    await threads.run(5, begun.append, "next")

    assert begun == ["next"]
    assert threads.pending == 0


async def test_work_whose_caller_has_left_is_pending_until_it_ends(gate: threading.Event) -> None:
    """Issue: nothing grows without bound: it has a thread, and what it works on."""
    threads = Threads("bodies", threads=1, most=10)
    async with asyncio.TaskGroup() as tasks:
        left = tasks.create_task(threads.run(6, gate.wait))
        await eventually(lambda: threads.pending == 6)
        left.cancel()

    with pytest.raises(OverloadedError):
        await threads.run(6, lambda: "too much")
    gate.set()
    await eventually(lambda: threads.pending == 0)
    assert await threads.run(6, lambda: "done") == "done"


async def test_nobody_waits_for_ever_for_what_never_ends(gate: threading.Event) -> None:
    """Issue: every wait has a bound, in the thread and before it."""
    threads = Threads("documents", threads=1, most=10, patience_s=0.05)
    for _ in range(2):
        with pytest.raises(OverloadedError, match="documents take over"):
            await threads.run(1, gate.wait)
    # The one is still in the thread, the other has left the line.
    assert threads.pending == 1

    gate.set()
    await eventually(lambda: threads.pending == 0)


async def test_what_work_raises_is_raised_where_it_is_waited_for() -> None:
    """Ours: also what looks like the end of one's patience."""
    threads = Threads("bodies", threads=1, most=10)

    for error in (ValueError("no"), TimeoutError("of its own"), GeneratorExit("no error")):
        with pytest.raises(type(error), match=str(error)):
            await threads.run(1, _raise, error)
    assert threads.pending == 0


def _raise(error: BaseException) -> None:
    raise error


async def test_the_loop_goes_on_beside_large_work(aside: Aside) -> None:
    """Ours: what waits for the loop would wait for ever on it."""
    loop, goes_on = asyncio.get_running_loop(), threading.Event()

    def work() -> bool:
        loop.call_soon_threadsafe(goes_on.set)
        return goes_on.wait(5)

    assert await aside(LARGE_BYTES, work)


async def test_small_work_is_done_where_it_is_asked_for(aside: Aside) -> None:
    """Ours: to change threads costs more."""
    assert await aside(LARGE_BYTES - 1, threading.get_ident) == threading.get_ident()
