"""What is listed of models that are loaded nowhere."""

import asyncio
import pathlib
from typing import Any

from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.door import WAIT_S, Door, door, write

A = "org/a"

CHATS = {
    "capabilities": {"chat": True, "tools": True, "vision": True},
    "limit": {"context": 32768, "output": None},
}


async def _listed(d: Door, context: int | None) -> Any:
    """Return the model's entry as soon as it has that context."""
    async with asyncio.timeout(WAIT_S):
        while True:
            entry = await d.get(f"/v1/models/{A}")
            if entry["max_model_len"] == context:
                return entry
            await asyncio.sleep(0.01)


async def test_model_that_is_loaded_nowhere_has_its_limit_and_capabilities(
    tmp_path: pathlib.Path,
) -> None:
    """Issue 5: from its files, by a neuron that has them; nothing is loaded for it."""
    neuron = FakeNeuron()
    neuron.fits[A] = CHATS
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        entry = await _listed(d, 32768)
        alias = await d.get("/v1/models/first")

    assert entry["loaded"] is False
    assert entry["limit"]["context"] == 32768
    assert entry["capabilities"]["vision"] is True
    assert entry["capabilities"]["audio"] is False
    assert alias["max_model_len"] == 32768
    assert neuron.loads == []


async def test_what_runs_is_believed_before_its_files(tmp_path: pathlib.Path) -> None:
    """Ours: an engine may have room for less than the model could."""
    neuron = FakeNeuron()
    neuron.fits[A] = CHATS
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        await _listed(d, 32768)
        await d.post(f"/admin/models/{A}/load")
        loaded = await _listed(d, 4096)
        await d.post(f"/admin/models/{A}/unload")
        gone = await _listed(d, 32768)

    assert loaded["loaded"] is True
    assert gone["loaded"] is False


async def test_node_that_cannot_say_is_not_asked_again_at_once(tmp_path: pathlib.Path) -> None:
    """Ours: the next one is."""
    empty, full = FakeNeuron(), FakeNeuron()
    full.fits[A] = CHATS
    async with running(empty), running(full):
        urls = {"a": empty.url, "b": full.url}
        async with door(write(tmp_path, urls, A)) as d:
            await _listed(d, 32768)
            asked = len(empty.fits_asked), len(full.fits_asked)

    assert asked[0] <= 1
    assert asked[1] == 1
