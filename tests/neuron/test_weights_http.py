"""The paths of weights, on a whole neuron with a hub beside it."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from cortex_core.server.clock import SystemClock
from neuron.devices.declared import DeclaredSource
from neuron.lifecycle.replica import ReplicaState
from neuron.lifespan import node_of
from neuron.supervisor.weights import Weights
from neuron.weights.files import cache_home
from tests.fakes.hub import FakeHub
from tests.neuron.conftest import Json, RunningNeuron, Start, events_of, settings_of
from tests.neuron.desk import FILES, SHARD, children, until_held

pytest.importorskip("huggingface_hub", reason="it comes with vLLM")

WANTED_BYTES = sum(len(FILES[n]) for n in ("config.json", "model.safetensors", "tokenizer.json"))


@pytest.fixture
async def node(start: Start, hub: FakeHub, tmp_path: pathlib.Path) -> AsyncIterator[RunningNeuron]:
    """A neuron with an empty hub cache, and a budget of two models and a bit."""
    for number in range(3):
        hub.models[f"org/m{number}"] = dict(FILES)
    vllm = {
        "hf_cache": str(tmp_path / "cache"),
        "endpoint": hub.url,
        "model_dirs": [str(tmp_path / "own")],
        "disk_budget_mb": 10,
    }
    small = {f"org/m{number}": 10 for number in range(3)}
    async with start(harness_vllm=vllm, simulated={"vram_mb": small}) as running:
        yield running


async def pull(node: RunningNeuron, model: str, query: str = "") -> tuple[int, Json]:
    """Have a model downloaded."""
    status, body, _ = await node.post(f"/weights/pull{query}", {"model_id": model})
    return status, body


async def remove(node: RunningNeuron, model: str) -> tuple[int, Json]:
    """Have a model removed."""
    async with node.session.delete(f"{node.url}/weights/{model}") as answer:
        return answer.status, await answer.json()


async def ids(node: RunningNeuron) -> list[str]:
    """Return what is on the disk."""
    return [entry["id"] for entry in (await node.get("/weights"))["models"]]


async def test_pulled_model_is_listed_and_can_be_removed(node: RunningNeuron) -> None:
    """Contract: GET /weights, POST /weights/pull, DELETE /weights/ID."""
    status, news = await pull(node, "org/name")
    listed = await node.get("/weights")
    removed = await remove(node, "org/name")
    again = await remove(node, "org/name")

    assert (status, news["status"]) == (200, "ready")
    assert news["done_bytes"] == news["total_bytes"] == WANTED_BYTES
    (entry,) = listed["models"]
    assert entry["id"] == "org/name"
    assert entry["revisions"] == ["main"]
    assert entry["size_bytes"] == WANTED_BYTES
    assert entry["files"] == 3
    assert entry["complete"]
    assert not entry["in_use"]
    assert listed["downloads"] == []
    assert listed["disk"]["used_bytes"] == WANTED_BYTES
    assert listed["disk"]["budget_bytes"] == 10 << 20
    assert listed["disk"]["free_bytes"] > 0
    assert removed[0] == 200
    assert removed[1]["status"] == "removed"
    assert again[0] == 404
    assert await ids(node) == []


async def test_stream_of_a_pull_tells_how_far_it_is(node: RunningNeuron, hub: FakeHub) -> None:
    """Ours: as a load does; `/events` tells everybody else."""
    hub.holds["model.safetensors"] = 3 << 20
    seen = []
    headers = {"accept": "text/event-stream"}
    body = {"model_id": "org/name"}
    async with node.session.post(f"{node.url}/weights/pull", json=body, headers=headers) as answer:
        async for event in events_of(answer):
            seen.append((event.event, json.loads(event.data)))
            if (seen[-1][1].get("done_bytes") or 0) >= 3 << 20:
                hub.released.set()

    names = [name for name, _ in seen]
    assert names[-1] == "done"
    assert set(names[:-1]) == {"progress"}
    assert seen[0][1]["status"] == "queued"
    assert seen[-1][1]["status"] == "ready"
    assert any(news["bytes_per_s"] for _, news in seen if news["status"] == "downloading")


async def test_events_tell_of_downloads(node: RunningNeuron) -> None:
    """Contract: `weights` events."""
    seen = []
    async with asyncio.timeout(30), contextlib.aclosing(node.events()) as events:
        async for event in events:
            if event.event == "snapshot":
                assert (await pull(node, "org/name", "?wait=false"))[0] == 202
            if event.event == "weights":
                seen.append(json.loads(event.data)["status"])
                if seen[-1] == "ready":
                    break

    assert seen[0] == "queued"
    assert "downloading" in seen


async def test_pull_joins_and_is_ended_by_a_delete(node: RunningNeuron, hub: FakeHub) -> None:
    """Ours: one download, and nothing of it is left."""
    hub.holds["model.safetensors"] = 3 << 20
    async with asyncio.TaskGroup() as tasks:
        pulls = [tasks.create_task(pull(node, "org/name")) for _ in range(2)]
        await until_held(hub)
        (news,) = (await node.get("/weights"))["downloads"]
        status, _ = await remove(node, "org/name")

    assert news["status"] == "downloading"
    assert status == 200
    assert [task.result()[0] for task in pulls] == [409, 409]
    assert len(hub.paths("/revision/main")) == 1
    assert await ids(node) == []
    assert not await children()


async def test_model_that_is_used_or_pinned_is_not_removed(node: RunningNeuron) -> None:
    """Ours: unload it first, unpin it first."""
    assert (await pull(node, "org/m0"))[0] == 200
    await node.load("org/m0")
    used = await remove(node, "org/m0")
    (shown,) = (await node.get("/weights"))["models"]
    await node.post("/models/unload", {"model_id": "org/m0"})
    await node.post("/models/pin", {"model_id": "org/m0"})
    pinned = await remove(node, "org/m0")
    await node.post("/models/pin", {"model_id": "org/m0", "pinned": False})
    free = await remove(node, "org/m0")

    assert used[0] == 409
    assert "unload it first" in used[1]["error"]["message"]
    assert shown["in_use"]
    assert pinned[0] == 409
    assert "unpin it first" in pinned[1]["error"]["message"]
    assert free[0] == 200


async def test_oldest_model_gives_way_and_a_loaded_one_does_not(node: RunningNeuron) -> None:
    """Ours: the budget holds two of three."""
    assert (await pull(node, "org/m0"))[0] == 200
    await node.load("org/m0")
    assert (await pull(node, "org/m1"))[0] == 200

    third = await pull(node, "org/m2")
    left = await ids(node)
    await node.load("org/m2")
    fourth = await pull(node, "org/name")

    assert third[0] == 200
    assert left == ["org/m0", "org/m2"]
    assert fourth[0] == 507
    assert fourth[1]["error"]["code"] == "insufficient_disk"
    assert fourth[1]["error"]["needed_bytes"] == WANTED_BYTES
    assert fourth[1]["error"]["free_bytes"] == (10 << 20) - 2 * WANTED_BYTES
    assert await ids(node) == ["org/m0", "org/m2"]


async def test_model_that_cannot_be_removed_keeps_no_other_from_making_room(
    node: RunningNeuron, tmp_path: pathlib.Path
) -> None:
    """Ours: a cache may hold what somebody else has put there."""
    assert (await pull(node, "org/m0"))[0] == 200
    snapshots = cache_home(tmp_path / "cache", "org/m0") / "snapshots"

    def lead_out() -> None:
        snapshots.rename(tmp_path / "outside")
        snapshots.symlink_to(tmp_path / "outside")

    await asyncio.to_thread(lead_out)
    assert (await pull(node, "org/m1"))[0] == 200
    third = await pull(node, "org/m2")

    assert third[0] == 200
    assert await ids(node) == ["org/m0", "org/m2"]


async def test_folders_of_models_are_listed_and_left_alone(
    node: RunningNeuron, tmp_path: pathlib.Path
) -> None:
    """Ours: `model_dirs` are only read."""
    folder = tmp_path / "own" / "org" / "mine"
    await asyncio.to_thread(folder.mkdir, parents=True)
    await asyncio.to_thread((folder / "config.json").write_bytes, b"{}")
    await asyncio.to_thread((folder / "model.safetensors").write_bytes, SHARD)

    (entry,) = (await node.get("/weights"))["models"]
    refused = await remove(node, "org/mine")

    assert entry["id"] == "org/mine"
    assert not entry["removable"]
    assert refused[0] == 409


async def test_link_out_of_the_cache_is_not_followed(
    node: RunningNeuron, tmp_path: pathlib.Path
) -> None:
    """Ours: a delete stays in the cache, wherever its folders lead."""
    assert (await pull(node, "org/name"))[0] == 200
    outside = tmp_path / "outside"
    cache = tmp_path / "cache"

    def link() -> None:
        outside.mkdir()
        (outside / "precious").touch()
        cache_home(cache, "org/linked").symlink_to(outside)
        (cache_home(cache, "org/name") / "blobs" / "link").symlink_to(outside)

    await asyncio.to_thread(link)

    assert (await remove(node, "org/name"))[0] == 200
    assert (await remove(node, "org/linked"))[0] == 404
    assert (await remove(node, "../outside"))[0] in (400, 404)
    assert await asyncio.to_thread((outside / "precious").exists)


async def test_cache_at_a_relative_path_is_listed_before_it_is_there(
    start: Start, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: as `HF_HOME=hub` makes it."""
    monkeypatch.chdir(tmp_path)
    async with start(harness_vllm={"hf_cache": "none/hub"}) as node:
        found = await node.get("/weights")

    assert found["models"] == []
    assert found["disk"]["free_bytes"] > 0


async def test_pull_of_what_cannot_be_is_refused(node: RunningNeuron) -> None:
    """Contract: the table of errors."""
    answers = [
        await pull(node, model)
        for model in ("org/none", "../etc", "/etc", "cortex/tiny", "a" * 5000)
    ]

    assert [status for status, _ in answers] == [404, 400, 404, 400, 400]


async def test_model_that_another_ones_options_name_is_in_use(tmp_path: pathlib.Path) -> None:
    """Ours: drafts and tokenizers are named in engine options, wherever vLLM wants."""
    settings = settings_of(harness_vllm={"hf_cache": str(tmp_path)})
    options = {
        "speculative_config": {"model": "org/draft"},
        "tokenizer": f"{cache_home(tmp_path, 'org/tokens')}/snapshots/abc",
    }
    spec = ModelSpec(
        model=ModelId("org/name"), harness="vllm", adapter="org/adapter", engine=options
    )
    loaded = ReplicaState(asked=spec, status=ReplicaStatus.LOADED, since=0)
    failed = msgspec.structs.replace(loaded, status=ReplicaStatus.FAILED)
    for model in ("org/draft", "org/adapter", "org/tokens", "org/other"):
        await asyncio.to_thread(cache_home(tmp_path, model).mkdir)
    source = DeclaredSource(settings.devices)
    async with node_of(settings, source=source, clock=SystemClock()) as (_, parts):
        used = Weights(parts, lambda: (loaded,), lambda news: None)
        unused = Weights(parts, lambda: (failed,), lambda news: None)
        listed = [(await weights.listing()).models for weights in (used, unused)]

    in_use = [entry.id for entry in listed[0] if entry.in_use]
    assert in_use == ["org/adapter", "org/draft", "org/tokens"]
    assert not any(entry.in_use for entry in listed[1])
