"""The inference paths over HTTP: admission, streams, cuts, counting."""

import asyncio
import io
import json

import aiohttp
import pytest

from tests.neuron.conftest import Json, RunningNeuron, Start, events_of

CHAT = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"


def _is_idle(health: Json) -> bool:
    return all(entry["in_flight"] == 0 for entry in health["models"])


def _is_busy(health: Json) -> bool:
    return any(entry["in_flight"] > 0 for entry in health["models"])


async def _stream(neuron: RunningNeuron, **fields: object) -> list[str]:
    """Return the data of all events of one stream."""
    body = {**CHAT, "stream": True, **fields}
    async with neuron.session.post(neuron.url + PATH, json=body) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["content-type"] == "text/event-stream"
        return [event.data async for event in events_of(answer)]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({**CHAT, "model": "nope"}, 404, "model_not_found"),
        ({"messages": []}, 400, None),
        ({"model": 5}, 400, None),
    ],
)
async def test_refusal_before_admission_says_that_it_may_go_elsewhere(
    start: Start, body: dict[str, object], status: int, code: str | None
) -> None:
    """Ours: `x-cortex-not-admitted` on everything that no engine has seen."""
    async with start() as neuron:
        got, answer, headers = await neuron.post(PATH, body)

    assert (got, answer["error"]["code"]) == (status, code)
    assert headers["x-cortex-not-admitted"] == "1"


async def test_error_of_the_engine_does_not_say_that_it_may_go_elsewhere(start: Start) -> None:
    """Ours: an engine has seen it, and its answer stands."""
    async with start() as neuron:
        await neuron.load("a")
        status, answer, headers = await neuron.post(PATH, {"model": "a", "messages": []})

    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "x-cortex-not-admitted" not in headers


async def test_body_that_is_not_json_is_refused(start: Start) -> None:
    """Ours: 400 invalid_json in the caller's envelope."""
    async with start() as neuron, neuron.session.post(neuron.url + PATH, data=b"{nope") as answer:
        body = await answer.json()

    assert (answer.status, body["error"]["code"]) == (400, "invalid_json")


async def test_loading_model_is_503_with_retry_after(start: Start) -> None:
    """Ours: reliability S7; the gateway retries elsewhere or later."""
    async with start(simulated={"faults": {"a": {"hang_load": True}}}) as neuron:
        await neuron.post("/models/load?wait=false", {"model_id": "a", "harness": "simulated"})

        status, body, headers = await neuron.post(PATH, CHAT)

    assert (status, body["error"]["code"]) == (503, "model_loading")
    assert int(headers["retry-after"]) >= 1
    assert headers["x-cortex-not-admitted"] == "1"


async def test_failed_model_is_503_with_its_reason(start: Start) -> None:
    """Ours: the short reason, no internals."""
    async with start(simulated={"faults": {"a": {"fail_to_load": True}}}) as neuron:
        await neuron.post("/models/load", {"model_id": "a", "harness": "simulated"})

        status, body, headers = await neuron.post(PATH, CHAT)

    assert (status, body["error"]["code"]) == (503, "model_load_failed")
    assert "as its fault says" in body["error"]["message"]
    assert "retry-after" in headers


@pytest.mark.parametrize(
    ("model", "path", "body"),
    [
        ("embed", PATH, {"messages": CHAT["messages"]}),
        ("a", "/v1/embeddings", {"input": "x"}),
        ("a", "/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("a", "/v1/score", {"text_1": "x", "text_2": "y"}),
    ],
)
async def test_route_that_a_model_cannot_do_is_400_about_the_model(
    start: Start, model: str, path: str, body: dict[str, object]
) -> None:
    """Ours: the model is the wrong one, not the request."""
    async with start() as neuron:
        await neuron.load(model)
        status, answer, _ = await neuron.post(path, {"model": model, **body})

    assert (status, answer["error"]["param"]) == (400, "model")


async def test_two_hundred_streams_complete_and_none_stays_counted(start: Start) -> None:
    """Ours: counts are exact after any load."""
    async with start() as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            streams = [tasks.create_task(_stream(neuron, max_tokens=8)) for _ in range(200)]
        health = await neuron.get("/health")

    assert all(stream.result()[-1] == "[DONE]" for stream in streams)
    assert len({len(stream.result()) for stream in streams}) == 1
    assert _is_idle(health)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_request_whose_caller_leaves_is_aborted(start: Start, is_stream: bool) -> None:
    """Ours: streaming or not, the engine is free again at once."""
    async with start(simulated={"decode_tok_per_s": 20}) as neuron:
        await neuron.load("a")
        body = {**CHAT, "stream": is_stream}
        async with asyncio.TaskGroup() as tasks:
            caller = tasks.create_task(neuron.post(PATH, body))
            await neuron.until(_is_busy)
            caller.cancel()

        health = await neuron.until(_is_idle)
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    assert health["models"][0]["queued"] == 0
    assert 'simulated_requests_running{model_name="a"} 0' in text
    assert f'neuron_requests_total{{model="a",outcome="cancelled",route="{PATH}"}} 1.0' in text


async def test_engine_that_dies_in_a_stream_ends_it_with_one_error_event(start: Start) -> None:
    """Ours: a cut stream never looks complete; the daemon lives on, and the model comes back."""
    async with start(simulated={"faults": {"a": {"die_after_tokens": 3}}}) as neuron:
        await neuron.load("a", vram_mb=100)
        await neuron.load("b", vram_mb=100)
        events = await _stream(neuron)
        health = await neuron.until(lambda health: health["models"][0]["status"] == "recovering")
        report = await neuron.model("a")
        status, _, _ = await neuron.post(PATH, {**CHAT, "model": "b"})
        await neuron.load("a", vram_mb=100)
        again = await neuron.model("a")

    assert "[DONE]" not in events
    assert [json.loads(event).get("error", {}).get("code") for event in events][-2:] == [
        None,
        "engine_error",
    ]
    assert _is_idle(health)
    assert report is not None
    assert "the engine died after 3 tokens" in report["error"]
    assert (report["error_kind"], report["recovery"]["attempts"]) == ("died", 1)
    assert status == 200
    assert again is not None
    assert again["status"] == "loaded"


async def test_engine_that_dies_before_the_first_token_is_an_error_status(start: Start) -> None:
    """Ours: before the first byte a status is still possible."""
    async with start(simulated={"faults": {"a": {"die_after_tokens": 3}}}) as neuron:
        await neuron.load("a")

        status, body, headers = await neuron.post(PATH, CHAT)

    assert (status, body["error"]["code"]) == (500, "engine_error")
    assert headers["x-cortex-engine-died"] == "1"
    assert "x-cortex-not-admitted" not in headers


async def test_health_answers_while_engines_hang(start: Start) -> None:
    """Ours: lesson 47, the control plane never waits for an engine."""
    async with start(simulated={"faults": {"a": {"hang": True}}}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(neuron.post(PATH, CHAT))
            health = await neuron.until(lambda health: health["models"][0]["in_flight"] == 5)
            await neuron.post("/models/unload", {"model_id": "a", "force": True})

    assert health["models"][0]["status"] == "loaded"


async def test_drain_lets_streams_finish_and_refuses_new_requests(start: Start) -> None:
    """Ours: reliability S13."""
    async with start(simulated={"decode_tok_per_s": 40}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            stream = tasks.create_task(_stream(neuron, max_tokens=30))
            await neuron.until(_is_busy)
            neuron.shutdown.ask()
            await neuron.until(lambda health: health["draining"])

            status, body, headers = await neuron.post(PATH, CHAT)
            async with neuron.session.get(neuron.url + "/readyz") as ready:
                readiness = await ready.json()

    assert (status, body["error"]["code"]) == (503, "draining")
    assert headers["x-cortex-not-admitted"] == "1"
    assert "retry-after" in headers
    assert (ready.status, readiness["status"]) == (503, "draining")
    assert stream.result()[-1] == "[DONE]"


async def test_stream_that_outlives_the_drain_ends_with_an_error_event(start: Start) -> None:
    """Ours: reliability S13, an in-stream error and a clean end at the deadline."""
    async with start(
        drain_timeout_s=0.3, simulated={"decode_tok_per_s": 5, "faults": {}}
    ) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            stream = tasks.create_task(_stream(neuron, max_tokens=1000))
            await neuron.until(_is_busy)
            neuron.shutdown.ask()

    events = stream.result()
    assert json.loads(events[-1])["error"]["code"] == "draining"
    assert "[DONE]" not in events


async def test_keep_alive_connection_serves_many_requests(start: Start) -> None:
    """Ours: no request costs the gateway its connection."""
    async with start() as neuron:
        await neuron.load("a")
        opened = []
        trace = aiohttp.TraceConfig()

        async def note(*_: object) -> None:
            opened.append(1)

        trace.on_connection_create_end.append(note)
        async with aiohttp.ClientSession(trace_configs=[trace]) as session:
            for _ in range(5):
                async with session.post(neuron.url + PATH, json=CHAT) as answer:
                    await answer.read()

    assert len(opened) == 1


async def test_oversized_body_is_refused(start: Start) -> None:
    """Ours: 413 at the limit of the settings."""
    async with start(max_body_mb=1) as neuron:
        large = io.BytesIO(json.dumps({**CHAT, "x": "y" * (1 << 20)}).encode())
        async with neuron.session.post(neuron.url + PATH, data=large) as answer:
            body = await answer.json()

    assert (answer.status, body["error"]["code"]) == (413, "body_too_large")
