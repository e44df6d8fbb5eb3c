"""Responses that are made while nobody waits: polled, read along, cancelled, and ended."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cortex_gateway.settings import ResponsesSettings
from tests.fakes.upstream import Wire, answers
from tests.gateway.responses.asking import Caller, calling, completion, pieces


async def polled(caller: Caller, response_id: str, *, until: tuple[str, ...]) -> Any:
    """Return a response once its status is one of some."""
    async with asyncio.timeout(10):
        while True:
            response = await caller.get(f"/v1/responses/{response_id}")
            if response["status"] in until:
                return response
            await asyncio.sleep(0.01)


class Slow:
    """Streams a piece, and the rest when it is told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        """Set when the gateway has closed the connection."""

    async def play(self, wire: Wire) -> None:
        base = {"id": "chatcmpl-1", "created": 1, "model": "m"}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        await wire.begin_stream()
        await wire.event(chunk({"content": "hel"}))
        self.begun.set()
        await first_of(self.go_on.wait, wire.closed.wait)
        if wire.closed.is_set():
            self.left.set()
            return
        await wire.event(chunk({"content": "lo"}))
        await wire.event(chunk({}, "stop"))
        await wire.chunk(b"data: [DONE]\n\n")
        await wire.end_stream()


async def first_of(*waits: Callable[[], Awaitable[Any]]) -> None:
    """Return when the first of some waits is over."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_awaited(wait)) for wait in waits]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()


async def _awaited(wait: Callable[[], Awaitable[Any]]) -> None:
    await wait()


async def hangs(wire: Wire) -> None:
    """Answer nothing until the gateway leaves."""
    await wire.closed.wait()


async def test_a_response_is_queued_and_comes_to_be() -> None:
    """Issue: background mode."""
    async with calling([completion("hello")]) as caller:
        begun = await caller.create(background=True)
        done = await polled(caller, begun["id"], until=("completed",))
        then = await caller.create("on", previous_response_id=begun["id"])

    assert begun["status"] in ("queued", "in_progress")
    assert done["background"] is True
    assert done["output"][0]["content"][0]["text"] == "hello"
    assert then["previous_response_id"] == begun["id"]
    assert [content for _, content in caller.said()] == ["hi", "hello", "on"]


async def test_a_stream_is_read_from_the_middle_while_it_is_made() -> None:
    """OpenAI's: `stream=true&starting_after=N`."""
    slow = Slow()
    async with (
        calling([slow.play]) as caller,
        asyncio.TaskGroup() as tasks,
        caller.reading() as reading,
    ):
        await slow.begun.wait()
        path = f"/v1/responses/{reading.response_id}?stream=true"
        whole = tasks.create_task(caller.read_again(path))
        rest = tasks.create_task(caller.read_again(f"{path}&starting_after=3"))
        slow.go_on.set()
        first, again, later = await reading.rest(), await whole, await rest
        afterwards = await caller.read_again(path)
        refused = await caller.ask("GET", f"{path}&starting_after=x")

    assert first == again == afterwards
    assert first[-1]["type"] == "response.completed"
    assert later == first[4:]
    assert refused[0] == 400


async def test_cancelling_ends_the_work_of_the_engine() -> None:
    """Issue: cancel; cancellation reaches the GPU."""
    slow = Slow()
    async with calling([slow.play]) as caller, caller.reading() as reading:
        await slow.begun.wait()
        path = f"/v1/responses/{reading.response_id}"
        status, cancelled = await caller.ask("POST", f"{path}/cancel")
        async with asyncio.timeout(10):
            await slow.left.wait()
        events = await reading.rest()
        again = await caller.ask("POST", f"{path}/cancel")
        kept = await caller.get(path)

    assert (status, cancelled["status"]) == (200, "cancelled")
    assert again == (200, cancelled)
    assert kept == cancelled
    assert events[-1]["type"] != "response.completed"


async def test_cancelling_at_once_ends_what_was_not_yet_begun() -> None:
    """Ours: a task that is cancelled before its first step must not be waited for in vain."""
    async with calling([hangs]) as caller:
        begun = await caller.create(background=True)
        status, cancelled = await caller.ask("POST", f"/v1/responses/{begun['id']}/cancel")

    assert (status, cancelled["status"]) == (200, "cancelled")


async def test_only_background_responses_are_cancelled() -> None:
    """OpenAI's: 400 for others, 404 for those that are not there."""
    async with calling([completion()]) as caller:
        response = await caller.create()
        plain = await caller.ask("POST", f"/v1/responses/{response['id']}/cancel")
        unknown = await caller.ask("POST", "/v1/responses/resp_none/cancel")

    assert (plain[0], unknown[0]) == (400, 404)


async def test_deleting_ends_what_is_being_made() -> None:
    """Ours: and it does not come back when it is over."""
    async with calling([hangs]) as caller:
        begun = await caller.create(background=True)
        path = f"/v1/responses/{begun['id']}"
        await caller.node.request()
        deleted = await caller.ask("DELETE", path)
        gone = await caller.ask("GET", path)
        await caller.node.wires[0].closed.wait()

    assert (deleted[0], gone[0]) == (200, 404)


async def test_there_are_not_more_than_the_limit() -> None:
    """Ours: `background_limit`, with the overload error; a place is free again afterwards."""
    async with calling([hangs], keeps=ResponsesSettings(background_limit=1)) as caller:
        begun = await caller.create(background=True)
        status, told = await caller.refused(background=True)
        await caller.ask("POST", f"/v1/responses/{begun['id']}/cancel")
        again = await caller.create(background=True)

    assert (status, told["code"]) == (503, "server_is_overloaded")
    assert again["status"] in ("queued", "in_progress")


async def test_nothing_is_kept_of_what_had_no_place(tmp_path: Path) -> None:
    """Ours: nobody knows its id, so that it would be `queued` for ever."""
    path = tmp_path / "responses.db"
    keeps = ResponsesSettings(background_limit=1, path=str(path))
    async with calling([hangs], keeps=keeps) as caller:
        begun = await caller.create(background=True)
        await caller.refused(background=True)
        with contextlib.closing(sqlite3.connect(path)) as db:
            kept = db.execute("SELECT id FROM records").fetchall()

    assert kept == [(begun["id"],)]


async def test_what_cannot_come_to_be_has_failed() -> None:
    """Issue: failed, with the error in the response."""
    error = b'{"error":{"message":"too long","type":"x","code":400,"param":null}}'
    async with calling([answers(400, error)]) as caller:
        begun = await caller.create(background=True)
        failed = await polled(caller, begun["id"], until=("failed",))
        events = await caller.stream(background=True)

    assert failed["error"]["message"] == "too long"
    assert events[-1]["type"] in ("response.failed", "error")


async def test_a_gateway_that_goes_down_ends_them(tmp_path: Path) -> None:
    """Ours: nobody polls for ever."""
    keeps = ResponsesSettings(path=str(tmp_path / "responses.db"))
    async with calling([hangs], keeps=keeps) as caller:
        begun = await caller.create(background=True)
        await caller.node.request()
    async with calling([completion()], keeps=keeps) as caller:
        response = await caller.get(f"/v1/responses/{begun['id']}")

    assert response["status"] == "failed"
    assert "went down" in response["error"]["message"]


async def test_a_caller_that_leaves_does_not_end_the_making() -> None:
    """Issue: background."""
    async with calling([pieces({"content": "hello"})]) as caller:
        events = await caller.stream(background=True)
        kept = await caller.get(f"/v1/responses/{events[0]['response']['id']}")

    assert kept["status"] == "completed"
