"""`/events`: snapshot, changes, resumption, heartbeats, slow listeners."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from cortex_core.ids import BootId
from cortex_core.sse import SseDecoder, SseEvent
from cortex_core.wire.neuron import Discovery, Health, ModelReport, Snapshot
from neuron.supervisor.feed import QUEUE_EVENTS, RING_EVENTS, EventFeed
from tests.fakes.clock import FakeClock
from tests.neuron.conftest import PATIENCE_S, Start

SNAPSHOT = Snapshot(discovery=Discovery(hostname="h"), health=Health(uptime_secs=0), models=())


def _feed(clock: FakeClock | None = None) -> EventFeed:
    return EventFeed(BootId("boot"), clock or FakeClock(), 5.0, lambda: SNAPSHOT)


async def _next(stream: AsyncIterator[bytes], count: int) -> list[SseEvent]:
    decoder = SseDecoder()
    events: list[SseEvent] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(events) < count:
            events += decoder.feed(await anext(stream))
    return events


async def test_first_event_is_everything_and_changes_follow(start: Start) -> None:
    """Ours: a listener never needs to poll."""
    async with start() as neuron, contextlib.aclosing(neuron.events()) as events:
        first = await anext(events)
        await neuron.load("a")
        statuses = []
        async with asyncio.timeout(PATIENCE_S):
            async for event in events:
                data = json.loads(event.data)
                if event.event == "model":
                    statuses.append(data["status"])
                if event.event == "health" and "loaded" in statuses:
                    break
        await neuron.post("/models/unload", {"model_id": "a"})
        async with asyncio.timeout(PATIENCE_S):
            async for event in events:
                if event.event == "model":
                    statuses.append(json.loads(event.data)["status"])
                if statuses[-1] == "unloaded":
                    break

    assert first.event == "snapshot"
    assert json.loads(first.data)["discovery"]["devices"][0]["name"] == "SIM"
    assert statuses[0] == "loading"
    assert list(dict.fromkeys(statuses)) == ["loading", "loaded", "unloading", "unloaded"]


async def test_listener_goes_on_where_it_was(start: Start) -> None:
    """Ours: `Last-Event-ID` of the same boot; nothing is missed and nothing comes twice."""
    async with start() as neuron:
        async with contextlib.aclosing(neuron.events()) as events:
            last_id = (await anext(events)).id
        await neuron.load("a")
        async with contextlib.aclosing(neuron.events(last_id)) as events:
            seen = []
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    seen.append(event)
                    if event.event == "model" and json.loads(event.data)["status"] == "loaded":
                        break

    assert last_id is not None
    boot_id, _, revision = last_id.rpartition("-")
    assert "snapshot" not in [event.event for event in seen]
    assert [event.id for event in seen] == [
        f"{boot_id}-{int(revision) + 1 + place}" for place in range(len(seen))
    ]


async def test_use_of_a_model_is_told(start: Start) -> None:
    """Ours: `last_used` moves the least recently used order of the gateway."""
    async with start() as neuron:
        await neuron.load("a")
        async with contextlib.aclosing(neuron.events()) as events:
            before = json.loads((await anext(events)).data)["models"][0]["last_used"]
            await neuron.post(
                "/v1/chat/completions",
                {"model": "a", "messages": [{"role": "user", "content": "x"}]},
            )
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    if event.event == "model":
                        break

    assert before is None
    assert json.loads(event.data)["last_used"] > 1_600_000_000


async def test_uses_are_told_in_their_order(start: Start) -> None:
    """Ours: several between two reports too; a gateway takes the latest told for the latest."""
    asked = ["b", "a"] * 3
    async with start() as neuron:
        for model in ("a", "b"):
            await neuron.load(model, vram_mb=100)
        async with contextlib.aclosing(neuron.events()) as events:
            await anext(events)
            for model in asked:
                question = {"model": model, "messages": [{"role": "user", "content": "x"}]}
                await neuron.post("/v1/chat/completions", question)
            reports = await neuron.get("/models")
            latest = max(report["last_used"] for report in reports)
            told, busy = [0.0], set(asked)
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    data = json.loads(event.data)
                    if event.event == "model":
                        told.append(data["last_used"] or 0.0)
                    elif event.event == "health":
                        busy = {model["id"] for model in data["models"] if model["in_flight"]}
                    if told[-1] == latest:
                        break

    assert told == sorted(told)
    assert not busy, "the counts come before the uses"
    assert len(told) > 2


async def test_id_of_another_life_gets_a_snapshot() -> None:
    """Ours: a restarted neuron numbers anew."""
    feed = _feed()
    feed.publish("model", ModelReport(id="a"))
    for last_id in ("other-1", "boot-2", "boot-x", "", "boot"):
        async with contextlib.aclosing(feed.listen(last_id)) as stream:
            (event,) = await _next(stream, 1)

        assert (event.event, event.id) == ("snapshot", "boot-1")


async def test_id_that_has_left_the_ring_gets_a_snapshot() -> None:
    """Ours: the ring is bounded."""
    feed = _feed()
    for _ in range(RING_EVENTS + 2):
        feed.publish("model", ModelReport(id="a"))

    async with contextlib.aclosing(feed.listen("boot-1")) as stream:
        (gone,) = await _next(stream, 1)
    async with contextlib.aclosing(feed.listen("boot-2")) as stream:
        (kept,) = await _next(stream, 1)

    assert gone.event == "snapshot"
    assert (kept.event, kept.id) == ("model", "boot-3")


async def test_slow_listener_gets_a_snapshot_instead_of_what_it_missed() -> None:
    """Ours: nobody's queue grows without bound."""
    feed = _feed()
    async with contextlib.aclosing(feed.listen(None)) as stream:
        await _next(stream, 1)
        for _ in range(QUEUE_EVENTS + 10):
            feed.publish("model", ModelReport(id="a"))
        (event,) = await _next(stream, 1)
        feed.publish("model", ModelReport(id="a"))
        (after,) = await _next(stream, 1)

    assert (event.event, event.id) == ("snapshot", f"boot-{QUEUE_EVENTS + 10}")
    assert (after.event, after.id) == ("model", f"boot-{QUEUE_EVENTS + 11}")


async def test_silence_is_broken_by_comments() -> None:
    """Ours: a listener can tell a quiet neuron from a dead one."""
    clock = FakeClock()
    feed = _feed(clock)
    async with contextlib.aclosing(feed.listen(None)) as stream:
        await _next(stream, 1)
        async with asyncio.TaskGroup() as tasks:
            beat = tasks.create_task(anext(stream))
            await clock.advance(4.9)
            assert not beat.done()
            await clock.advance(0.2)

    assert beat.result() == b": alive\n\n"


async def test_listener_that_leaves_is_forgotten() -> None:
    """Ours: and a closed feed ends every stream after its last event."""
    feed = _feed()
    async with contextlib.aclosing(feed.listen(None)) as stream:
        await _next(stream, 1)
        assert feed.listeners == 1
        feed.publish("model", ModelReport(id="a"))
        feed.close()

        rest = [chunk async for chunk in stream]

    assert len(rest) == 1
    assert feed.listeners == 0
