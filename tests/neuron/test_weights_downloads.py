"""Downloads from a hub, by the process that really does them."""

import asyncio
import hashlib
import importlib
import pathlib
from typing import Any

import pytest

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    ModelLoadFailedError,
)
from tests.fakes.hub import COMMIT, FakeHub
from tests.neuron.desk import FILES, SHARD, Desk, children, until_held

pytest.importorskip("huggingface_hub", reason="it comes with vLLM")


async def test_model_is_downloaded_verified_and_found(desk: Desk) -> None:
    """Ours: what a load needs and no more; a second fetch asks nobody."""
    folder = await desk.fetch()

    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == SHARD
    assert await desk.find() == folder
    assert await desk.find(COMMIT) == folder
    assert desk.news[-1].status == "ready"
    last = desk.news[-1]
    assert last.done_bytes == last.total_bytes == sum(len(FILES[name]) for name in names)
    assert {stage for stage, _, _ in desk.progress} == {"downloading"}
    desk.configure(is_offline=True)
    assert await desk.fetch() == folder
    assert not await children()


async def test_cache_is_one_that_the_library_knows(desk: Desk) -> None:
    """huggingface_hub: other programs find the model in the same cache."""
    folder = await desk.fetch()

    library: Any = importlib.import_module("huggingface_hub")
    cache = str(desk.downloads.source.cache)
    found = library.snapshot_download("org/name", cache_dir=cache, local_files_only=True)
    assert pathlib.Path(found) == folder
    (repo,) = library.scan_cache_dir(cache).repos
    assert repo.repo_id == "org/name"
    assert {len(revision.refs) for revision in repo.revisions} == {1}


async def test_adapter_is_downloaded_like_a_model(desk: Desk, hub: FakeHub) -> None:
    """PEFT: it has no `config.json`, and is whole all the same; its pickled twin is left there."""
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": SHARD}
    hub.models["org/adapter"] = {**files, "adapter_model.bin": SHARD, "README.md": b"# Adapter"}

    folder = await desk.fetch("org/adapter")

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert await desk.fetch("org/adapter") == folder


async def test_cut_connection_is_gone_on_with(desk: Desk, hub: FakeHub) -> None:
    """Ours: bytes that came are not asked for again."""
    hub.cuts["model.safetensors"] = [1_500_000, 1_500_000]

    folder = await desk.fetch()

    assert (folder / "model.safetensors").read_bytes() == SHARD
    ranges = [
        headers.get("range")
        for path, headers in hub.requests
        if path.startswith("/cdn/") and path.endswith("model.safetensors")
    ]
    assert ranges == [None, "bytes=1048576-", "bytes=2097152-"]


async def test_cancelled_download_leaves_a_part_and_no_process(desk: Desk, hub: FakeHub) -> None:
    """Ours: the last one who leaves ends it; the next one goes on where it was."""
    hub.holds["model.safetensors"] = 1_500_000
    waiting = [desk.begin() for _ in range(2)]
    await until_held(hub)
    await desk.until(lambda: (desk.news[-1].done_bytes or 0) > 1 << 20)

    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    assert len(desk.downloads.under_way) == 1
    waiting[1].cancel()
    await asyncio.wait(waiting)
    await desk.downloads.cancel("org/name")

    assert not await children()
    assert {news.status for news in desk.news} >= {"downloading", "cancelled"}
    assert await desk.find() is None
    size = max(desk.partials())
    assert size == 1 << 20
    hub.holds.clear()
    hub.requests.clear()
    await desk.fetch()
    (ranged,) = [h["range"] for path, h in hub.requests if path.startswith("/cdn/")]
    assert ranged == f"bytes={size}-"
    assert desk.partials() == []


async def test_pull_goes_on_when_nobody_waits(desk: Desk, hub: FakeHub) -> None:
    """Ours: a load that joins a pull and leaves does not take it along."""
    hub.holds["model.safetensors"] = 1_500_000
    download = desk.downloads.pull("org/name", "main")
    load = desk.begin()
    await until_held(hub)

    load.cancel()
    await asyncio.wait([load])
    hub.released.set()

    assert (await download.done / "config.json").is_file()
    assert len(hub.paths("/revision/main")) == 1


async def test_downloads_of_a_model_come_one_after_the_other(desk: Desk, hub: FakeHub) -> None:
    """Ours: two revisions of a model are not written at the same time."""
    hub.holds["model.safetensors"] = 1_500_000
    first = desk.downloads.pull("org/name", "main")
    second = desk.downloads.pull("org/name", COMMIT)
    await until_held(hub)

    assert len(await children()) == 1
    assert second.news.status == "queued"

    hub.released.set()
    assert await first.done == await second.done


async def test_only_so_many_are_downloaded_at_once(desk: Desk, hub: FakeHub) -> None:
    """Ours: `max_downloads`, which is 2 here."""
    hub.holds["model.safetensors"] = 1_500_000
    for number in range(3):
        hub.models[f"org/m{number}"] = dict(FILES)

    pulls = [desk.downloads.pull(f"org/m{number}", "main") for number in range(3)]
    await desk.until(lambda: [pull.news.status for pull in pulls].count("downloading") == 2)

    assert pulls[2].news.status == "queued"
    hub.released.set()
    for pull in pulls:
        await pull.done


async def test_wrong_bytes_are_an_error_and_are_not_kept(desk: Desk, hub: FakeHub) -> None:
    """Ours: size and SHA-256 are those that the hub says."""
    hub.corrupt.add("model.safetensors")

    error = await desk.refused()

    assert type(error) is ModelLoadFailedError
    assert "model.safetensors" in error.message
    assert "checksum" in error.message
    assert await desk.find() is None
    assert sum(desk.partials()) == 0
    hub.corrupt.clear()
    await desk.fetch()


async def test_wrong_part_of_an_earlier_attempt_is_replaced(desk: Desk) -> None:
    """Ours: what a crash left half written does not stand in the way for ever."""
    await desk.fetch()
    blob = desk.home / "blobs" / hashlib.sha256(SHARD).hexdigest()

    def crash() -> None:
        (desk.home / "snapshots" / COMMIT / "config.json").unlink()
        blob.unlink()
        blob.with_name(f"{blob.name}.incomplete").write_bytes(b"garbage" + SHARD[:1_600_000])

    await asyncio.to_thread(crash)

    folder = await desk.fetch()

    assert (folder / "model.safetensors").read_bytes() == SHARD


async def test_close_ends_downloads_and_begins_none(desk: Desk, hub: FakeHub) -> None:
    """Ours: a neuron that goes down leaves no process."""
    hub.holds["model.safetensors"] = 1_500_000
    fetching = desk.begin()
    await until_held(hub)

    await desk.downloads.close()

    assert not await children()
    assert isinstance(await fetching, DrainingError)
    assert isinstance(await desk.refused(), DrainingError)


async def test_cancel_tells_those_who_wait(desk: Desk, hub: FakeHub) -> None:
    """Ours: whoever removes a model ends its download."""
    hub.holds["model.safetensors"] = 1_500_000
    fetching = desk.begin()
    await until_held(hub)

    assert await desk.downloads.cancel("org/name")
    assert not await desk.downloads.cancel("org/name")

    assert isinstance(await fetching, ConflictError)


async def test_two_who_remove_a_model_let_no_load_in_between(desk: Desk) -> None:
    """Ours: a load waits for both, and for neither for ever."""
    entered, leave = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]

    async def remove(number: int) -> None:
        async with desk.downloads.removing("org/name"):
            entered[number].set()
            await leave[number].wait()

    first, second = (desk.tasks.create_task(remove(number)) for number in range(2))
    await entered[0].wait()
    load = desk.begin()
    leave[0].set()
    await first
    await entered[1].wait()
    under_way = desk.downloads.under_way
    leave[1].set()
    await second

    assert not under_way
    assert await load is None
