"""Sleeping and waking over HTTP, with the simulated engine."""

import asyncio
import json

import pytest

from tests.neuron.conftest import RunningNeuron, Start, events_of

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
SLEEP, WAKE = "/models/sleep", "/models/wake"
QUICK = {"sleep_s": 0, "wake_s": 0.05, "vram_mb": {"a": 600, "b": 600}}


async def _sleep(neuron: RunningNeuron, model: str = "a", **more: object) -> None:
    status, body, _ = await neuron.post(SLEEP, {"model_id": model, **more})
    assert (status, body) == (200, {"status": "sleeping"})


async def _wake(neuron: RunningNeuron, model: str = "a") -> None:
    status, body, _ = await neuron.post(WAKE, {"model_id": model})
    assert (status, body) == (200, {"status": "loaded"})


@pytest.mark.parametrize("level", [1, 2])
async def test_model_that_sleeps_is_reported_and_answers_again_when_it_wakes(
    start: Start, level: int
) -> None:
    """Ours: two models that fit only in turn, without a second load."""
    async with start(simulated=QUICK, sleep_budget_mb=1000) as neuron:
        await neuron.load("a")
        await _sleep(neuron, level=level)
        report = await neuron.model("a")
        health = await neuron.get("/health")
        assert (report["status"], report["sleep_level"]) == ("sleeping", level)
        assert report["host_used_mb"] == (600 if level == 1 else 0)
        assert report["vram_used_mb"] == 0
        assert report["servable"] == {"ok": False, "reason": "'a' sleeps; wake it"}
        assert report["capabilities"]["sleep"] is True
        assert (health["sleep_budget_mb"], health["sleep_used_mb"]) == (
            1000,
            report["host_used_mb"],
        )
        assert health["devices"][0]["vram_free_mb"] == 1000

        await neuron.load("b")
        await _sleep(neuron, "b", level=2)
        await _wake(neuron)
        status, _, _ = await neuron.post("/v1/chat/completions", {"model": "a", **CHAT})
        report = await neuron.model("a")

    assert status == 200
    assert (report["status"], report["sleep_level"], report["host_used_mb"]) == (
        "loaded",
        None,
        None,
    )
    assert report["wake_s"] > 0
    assert report["max_in_flight"] == 64


async def test_request_for_a_model_that_sleeps_may_go_elsewhere(start: Start) -> None:
    """Ours: 503 with the header that says that no engine saw it."""
    async with start(simulated=QUICK) as neuron:
        await neuron.load("a")
        await _sleep(neuron)

        status, body, headers = await neuron.post("/v1/chat/completions", {"model": "a", **CHAT})

    assert (status, body["error"]["code"]) == (503, "no_replica")
    assert headers["x-cortex-not-admitted"] == "1"
    assert "retry-after" in headers


async def test_wake_streams_its_stages(start: Start) -> None:
    """Ours: as a load does."""
    async with start(simulated={"sleep_s": 0, "wake_s": 0.2}) as neuron:
        await neuron.load("a")
        await _sleep(neuron)
        headers = {"accept": "text/event-stream"}
        async with neuron.session.post(
            neuron.url + WAKE, json={"model_id": "a"}, headers=headers
        ) as answer:
            events = [event async for event in events_of(answer)]

    stages = [json.loads(event.data)["stage"] for event in events if event.event == "progress"]
    assert stages[0] == "waking"
    assert events[-1].event == "done"


async def test_twenty_wakes_and_loads_are_one(start: Start) -> None:
    """Ours: single flight; the load of a model that sleeps is a wake."""
    async with start(simulated={"sleep_s": 0, "wake_s": 0.2}) as neuron:
        await neuron.load("a")
        await _sleep(neuron)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(_wake(neuron))
                tasks.create_task(neuron.load("a"))
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    assert 'neuron_wakes_total{outcome="ok"} 1.0' in text
    assert 'neuron_loads_total{outcome="ok"} 1.0' in text


async def test_sleep_without_host_memory_is_507_and_the_model_serves_on(start: Start) -> None:
    """Ours: the budget is a setting."""
    async with start(simulated=QUICK, sleep_budget_mb=500) as neuron:
        await neuron.load("a")

        status, body, _ = await neuron.post(SLEEP, {"model_id": "a"})

        assert (status, body["error"]["code"]) == (507, "insufficient_sleep_memory")
        assert body["error"]["needed_bytes"] == 600 << 20
        assert (await neuron.model("a"))["status"] == "loaded"
        await _sleep(neuron, level=2)


async def test_wake_without_device_memory_is_507_and_the_model_sleeps_on(start: Start) -> None:
    """Ours: the gateway makes room and asks again."""
    async with start(simulated=QUICK) as neuron:
        await neuron.load("a")
        await _sleep(neuron)
        await neuron.load("b")

        status, body, _ = await neuron.post(WAKE, {"model_id": "a"})

        assert (status, body["error"]["code"]) == (507, "insufficient_vram")
        assert (await neuron.model("a"))["status"] == "sleeping"


@pytest.mark.parametrize("when", ["load", "wake"])
async def test_engine_that_answers_wrongly_never_serves(start: Start, when: str) -> None:
    """Ours: the known answer stands between a load or a wake and the first caller."""
    async with start(simulated={**QUICK, "faults": {"a": {"wrong_answer": when}}}) as neuron:
        if when == "load":
            answer = await neuron.post("/models/load", {"model_id": "a", "harness": "simulated"})
        else:
            await neuron.load("a")
            await _sleep(neuron)
            answer = await neuron.post(WAKE, {"model_id": "a"})
        report = await neuron.model("a")

    assert (answer[0], answer[1]["error"]["code"]) == (503, "model_load_failed")
    assert report["status"] == ("failed" if when == "load" else "recovering")
    assert "wrongly" in report["error"]


async def test_engine_that_cannot_sleep_says_so_and_refuses(start: Start) -> None:
    """Ours: 409, and no budget is shown."""
    async with start(simulated={"can_sleep": False}) as neuron:
        await neuron.load("a")
        report = await neuron.model("a")
        health = await neuron.get("/health")

        status, body, _ = await neuron.post(SLEEP, {"model_id": "a"})

    assert report["capabilities"]["sleep"] is False
    assert (health["sleep_budget_mb"], health["sleep_used_mb"]) == (None, None)
    assert (status, body["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (SLEEP, {"model_id": "nowhere"}, 404),
        (WAKE, {"model_id": "nowhere"}, 404),
        (SLEEP, {"model_id": "a", "level": 3}, 400),
        (SLEEP, {"model_id": "a", "drain_timeout_s": -1}, 400),
        (WAKE, {}, 400),
    ],
)
async def test_impossible_command_is_refused(
    start: Start, path: str, body: dict[str, object], status: int
) -> None:
    """Ours: unknown models are 404, wrong fields 400."""
    async with start() as neuron:
        assert (await neuron.post(path, body))[0] == status


async def test_sleeping_model_ends_with_the_neuron(start: Start) -> None:
    """Ours: shutting down needs nobody to be awake."""
    async with start(simulated=QUICK) as neuron:
        await neuron.load("a")
        await _sleep(neuron)
        neuron.shutdown.ask()
