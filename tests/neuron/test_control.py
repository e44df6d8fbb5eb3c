"""Load, unload and report over HTTP."""

import asyncio
import json

import pytest

from cortex_core.sse import SseEvent
from tests.neuron.conftest import PATIENCE_S, RunningNeuron, Start, events_of

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


async def _streamed_load(neuron: RunningNeuron) -> list[SseEvent]:
    body = {"model_id": "a", "harness": "simulated"}
    headers = {"accept": "text/event-stream"}
    path = neuron.url + "/models/load"
    async with neuron.session.post(path, json=body, headers=headers) as answer:
        assert answer.status == 200
        return [event async for event in events_of(answer)]


async def test_twenty_loads_of_one_model_are_one(start: Start) -> None:
    """Ours: lesson 51, check-then-act loaded one model five times."""
    async with start(simulated={"load_s": 0.2}) as neuron:
        async with asyncio.TaskGroup() as tasks:
            loads = [tasks.create_task(neuron.load("a")) for _ in range(20)]
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    assert all(load.done() for load in loads)
    assert 'neuron_loads_total{outcome="ok"} 1.0' in text


async def test_loaded_model_is_reported_with_all_that_is_known(start: Start) -> None:
    """Given: `/models` with id, harness, status, devices, vram_used_mb; ours: the rest."""
    async with start(simulated={"vram_mb": {"a": 600}, "context": 128}) as neuron:
        await neuron.load("a", vram_mb=100)
        report = await neuron.model("a")
        health = await neuron.get("/health")

    assert report is not None
    assert report["harness"] == "simulated"
    assert report["status"] == "loaded"
    assert report["devices"] == [0]
    assert report["vram_used_mb"] == 600
    assert report["limit"] == {"context": 128, "output": 127}
    assert report["capabilities"]["chat"] is True
    assert report["servable"] == {"ok": True, "reason": None}
    assert (health["devices"][0]["vram_used_mb"], health["devices"][0]["vram_free_mb"]) == (
        600,
        400,
    )


async def test_loaded_model_answers_at_once_and_a_differing_spec_is_refused(start: Start) -> None:
    """Ours: 409 names the difference."""
    async with start() as neuron:
        await neuron.load("a")
        await neuron.load("a")

        status, body, _ = await neuron.post(
            "/models/load",
            {"model_id": "a", "harness": "simulated", "engine": {"max_model_len": 5}},
        )

    assert status == 409
    assert body["error"]["code"] == "conflict"
    assert "engine.max_model_len" in body["error"]["message"]


async def test_model_that_does_not_fit_is_refused_with_both_sizes(start: Start) -> None:
    """Ours: 507 with needed and free bytes, and nothing stays behind."""
    async with start(simulated={"vram_mb": {"a": 600, "b": 500}}) as neuron:
        await neuron.load("a")

        status, body, _ = await neuron.post(
            "/models/load", {"model_id": "b", "harness": "simulated"}
        )

        assert status == 507
        assert body["error"]["code"] == "insufficient_vram"
        assert body["error"]["needed_bytes"] == 500 << 20
        assert body["error"]["free_bytes"] == 400 << 20
        assert await neuron.model("b") is None


async def test_load_waits_for_memory_that_an_unload_will_free(start: Start) -> None:
    """Ours: an unload under way is worth waiting for."""
    simulated = {"vram_mb": {"a": 600, "b": 500}, "faults": {"a": {"hang": True}}}
    async with start(simulated=simulated) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            busy = tasks.create_task(neuron.post("/v1/chat/completions", {"model": "a", **CHAT}))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            unload = tasks.create_task(
                neuron.post("/models/unload", {"model_id": "a", "drain_timeout_s": 0.3})
            )
            await neuron.until(lambda health: health["models"][0]["status"] == "unloading")
            await neuron.load("b")

    assert unload.result()[:2] == (200, {"status": "unloaded"})
    assert busy.result()[0] == 503


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"harness": "simulated"}, "model_id"),
        ({"model_id": "a", "harness": "nope"}, "harness"),
        ({"model_id": "a", "harness": "simulated", "devices": [7]}, "devices"),
        ({"model_id": "a", "harness": "simulated", "tensor_parallel": 2}, "tensor_parallel"),
        ({"model_id": "a", "harness": "simulated", "tensor_parallel": 0}, "tensor_parallel"),
        ({"model_id": "a", "harness": "simulated", "pipeline_parallel": 0}, "pipeline_parallel"),
        ({"model_id": "a", "harness": "simulated", "engine": {"nope": 1}}, "engine"),
        ({"model_id": 5, "harness": "simulated"}, "model_id"),
    ],
)
async def test_impossible_spec_is_refused_and_names_the_field(
    start: Start, body: dict[str, object], param: str
) -> None:
    """Ours: 400 with `param`; the model is not remembered."""
    async with start() as neuron:
        status, answer, _ = await neuron.post("/models/load", body)
        models = await neuron.get("/models")

    assert status == 400
    assert answer["error"]["param"] == param
    assert models == []


async def test_unknown_harness_names_the_known_ones(start: Start) -> None:
    """Ours: the cure is in the message."""
    async with start() as neuron:
        _, answer, _ = await neuron.post("/models/load", {"model_id": "a", "harness": "nope"})

    assert "there is simulated" in answer["error"]["message"]


async def test_failed_load_is_reported_and_can_be_tried_again(start: Start) -> None:
    """Ours: `failed` with the reason, until somebody loads it again."""
    async with start(simulated={"faults": {"a": {"fail_to_load": 1}}}) as neuron:
        status, body, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated"}
        )
        report = await neuron.model("a")
        assert (status, body["error"]["code"]) == (503, "model_load_failed")
        assert report is not None
        assert (report["status"], report["vram_used_mb"]) == ("failed", None)
        assert "as its fault says" in report["error"]

        await neuron.load("a")

        report = await neuron.model("a")
        assert report is not None
        assert (report["status"], report["error"]) == ("loaded", None)


async def test_load_without_waiting_answers_at_once_and_goes_on(start: Start) -> None:
    """Ours: `?wait=false` is 202."""
    async with start(simulated={"load_s": 0.2}) as neuron:
        status, body, _ = await neuron.post(
            "/models/load?wait=false", {"model_id": "a", "harness": "simulated"}
        )
        assert (status, body) == (202, {"status": "loading"})

        await neuron.until(lambda health: health["models"][0]["status"] == "loaded")


async def test_load_that_cannot_be_is_refused_even_without_waiting(start: Start) -> None:
    """Ours: a 202 is a promise that the load was possible."""
    async with start() as neuron:
        status, body, _ = await neuron.post(
            "/models/load?wait=false",
            {"model_id": "a", "harness": "simulated", "vram_mb": 2000},
        )

    assert (status, body["error"]["code"]) == (507, "insufficient_vram")


async def test_load_goes_on_when_its_caller_leaves(start: Start) -> None:
    """Ours: somebody else may wait for the same model."""
    async with start(simulated={"load_s": 0.3}) as neuron:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await neuron.load("a")

        await neuron.until(lambda health: health["models"][0]["status"] == "loaded")


async def test_load_streams_its_progress(start: Start) -> None:
    """Ours: stages with bytes and the time left, then `done`."""
    async with start(simulated={"load_s": 0.2, "vram_mb": {"a": 100}}) as neuron:
        events = await _streamed_load(neuron)

    progress = [json.loads(event.data) for event in events if event.event == "progress"]
    assert events[-1].event == "done"
    assert json.loads(events[-1].data) == {"status": "loaded"}
    weights = [entry for entry in progress if entry["stage"] == "weights"]
    assert [entry["done_bytes"] for entry in weights] == sorted(
        entry["done_bytes"] for entry in weights
    )
    assert {entry["total_bytes"] for entry in weights} == {100 << 20}
    assert weights[-1]["eta_s"] is not None


async def test_load_that_fails_ends_its_stream_with_the_error(start: Start) -> None:
    """Ours: the same error as without a stream."""
    async with start(simulated={"faults": {"a": {"fail_to_load": True}}}) as neuron:
        events = await _streamed_load(neuron)

    assert events[-1].event == "error"
    assert json.loads(events[-1].data)["error"]["code"] == "model_load_failed"


async def test_unload_cancels_a_load_under_way(start: Start) -> None:
    """Ours: memory that somebody wants back is not waited for."""
    simulated = {"vram_mb": {"a": 600}, "faults": {"a": {"hang_load": True}}}
    async with start(simulated=simulated) as neuron:
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(
                neuron.post("/models/load", {"model_id": "a", "harness": "simulated"})
            )
            await neuron.until(lambda health: len(health["models"]) == 1)
            status, body, _ = await neuron.post("/models/unload", {"model_id": "a"})
        health = await neuron.get("/health")

    assert (status, body) == (200, {"status": "unloaded"})
    assert load.result()[0] == 409
    assert health["models"] == []
    assert health["devices"][0]["vram_used_mb"] == 0


async def test_unload_lets_requests_finish(start: Start) -> None:
    """Ours: a drain, not a cut."""
    async with start(simulated={"decode_tok_per_s": 100}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(
                neuron.post("/v1/chat/completions", {"model": "a", "max_tokens": 20, **CHAT})
            )
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            status, _, _ = await neuron.post("/models/unload", {"model_id": "a"})

    assert status == 200
    assert chat.result()[0] == 200


async def test_forced_unload_cuts_requests(start: Start) -> None:
    """Ours: `force` waits for nobody, and the cut request gets an error."""
    async with start(simulated={"faults": {"a": {"hang": True}}}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(neuron.post("/v1/chat/completions", {"model": "a", **CHAT}))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            async with asyncio.timeout(PATIENCE_S):
                status, _, _ = await neuron.post("/models/unload", {"model_id": "a", "force": True})

    assert status == 200
    assert (chat.result()[0], chat.result()[1]["error"]["code"]) == (503, "no_replica")


async def test_unload_of_an_unknown_model_is_not_found(start: Start) -> None:
    """Given: 404."""
    async with start() as neuron:
        status, body, _ = await neuron.post("/models/unload", {"model_id": "nope"})

    assert (status, body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/models/org/a/endpoint", "/models/org%2Fa/endpoint"])
async def test_endpoint_of_a_loaded_model_is_this_very_address(start: Start, path: str) -> None:
    """Given: `{"url"}`, 404 for others; ids may have slashes, raw or encoded."""
    async with start() as neuron:
        async with neuron.session.get(neuron.url + path) as answer:
            assert answer.status == 404
        await neuron.load("org/a")

        assert await neuron.get(path) == {"url": neuron.url}


async def test_discovery_says_what_the_node_is(start: Start) -> None:
    """Given: hostname, os, kernel, devices, harnesses; ours: boot id and version."""
    async with start() as neuron:
        found = await neuron.get("/discovery")
        version = await neuron.get("/version")

    assert found["hostname"]
    assert found["kernel"]
    assert found["harnesses"] == ["simulated"]
    assert found["devices"][0]["name"] == "SIM"
    assert found["devices"][0]["vram_total_mb"] == 1000
    assert (version["boot_id"], version["version"]) == (found["boot_id"], found["version"])


async def test_node_without_devices_loads_and_serves(start: Start) -> None:
    """Ours: CPU hosts have no memory check and report no devices."""
    async with start(devices=[], simulated={"vram_mb": {"a": 10**6}}) as neuron:
        await neuron.load("a")
        status, _, _ = await neuron.post("/v1/chat/completions", {"model": "a", **CHAT})
        report = await neuron.model("a")
        health = await neuron.get("/health")

    assert status == 200
    assert report is not None
    assert report["devices"] == []
    assert health["devices"] == []


async def test_default_models_are_loaded_one_after_the_other_and_failures_are_listed(
    start: Start,
) -> None:
    """Given: `activation` with pending, in_progress, completed, failed."""
    models = [{"model_id": name, "harness": "simulated"} for name in ("a", "bad", "c")]
    # Two models of the default size would not fit on the device.
    small = dict.fromkeys(("a", "bad", "c"), 100)
    simulated = {"load_s": 0.2, "vram_mb": small, "faults": {"bad": {"fail_to_load": True}}}
    async with start(default_models=models, simulated=simulated) as neuron:
        first = await neuron.get("/health")
        ready = await neuron.get("/readyz")
        last = await neuron.until(lambda health: health["activation"]["state"] == "ready")

    assert first["activation"]["state"] == "pre_warming"
    assert first["activation"]["in_progress"] == "a"
    assert first["activation"]["pending"] == ["bad", "c"]
    assert ready == {"status": "ready", "activation": "pre_warming"}
    assert last["activation"]["completed"] == ["a", "c"]
    assert [entry["model_id"] for entry in last["activation"]["failed"]] == ["bad"]
    assert "as its fault says" in last["activation"]["failed"][0]["error"]


async def test_wrong_method_and_unknown_path_are_answered_in_our_envelope(start: Start) -> None:
    """Ours: 405 with `Allow`, 404 with a code."""
    async with start() as neuron:
        async with neuron.session.get(neuron.url + "/models/load") as wrong:
            body = await wrong.json()
        async with neuron.session.get(neuron.url + "/nope") as unknown:
            missing = await unknown.json()

    assert (wrong.status, body["error"]["code"]) == (405, "method_not_supported")
    assert "POST" in wrong.headers["allow"]
    assert (unknown.status, missing["error"]["code"]) == (404, "not_found")


async def test_metrics_count_models_loads_and_memory_without_doubles(start: Start) -> None:
    """Ours: one exposition, every family once."""
    async with start(simulated={"vram_mb": {"a": 600}}) as neuron:
        await neuron.load("a")
        await neuron.post("/v1/chat/completions", {"model": "a", **CHAT})
        await neuron.post("/v1/chat/completions", {"model": "nope", **CHAT})
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    types = [line for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))
    assert 'neuron_models{status="loaded"} 1.0' in text
    assert 'neuron_device_memory_bytes{device="0",kind="used"} 6.29' in text
    chat = 'route="/v1/chat/completions"'
    assert f'neuron_requests_total{{model="a",outcome="ok",{chat}}} 1.0' in text
    assert f'neuron_requests_total{{model="unknown",outcome="refused",{chat}}} 1.0' in text
    assert 'neuron_requests_in_flight{model="a"} 0.0' in text
    assert 'simulated_generation_tokens_total{model_name="a"}' in text
    assert "nope" not in text


async def test_a_model_of_unknown_size_takes_the_default(start: Start) -> None:
    """Issue: the table, else the load request, else 1000 says."""
    device = {"index": 0, "name": "SIM", "vram_total_mb": 4000}
    async with start(devices=[device], simulated={"vram_mb": {"listed": 300}}) as neuron:
        await neuron.load("listed", vram_mb=700)
        await neuron.load("asked", vram_mb=700)
        await neuron.load("neither")
        sizes = {entry["id"]: entry["vram_used_mb"] for entry in await neuron.get("/models")}

    assert sizes == {"listed": 300, "asked": 700, "neither": 1000}
