"""Downloads into a cache of a test's own, what they say, and the processes that do them."""

import asyncio
import os
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cortex_core.errors import RequestError
from cortex_core.wire.weights import WeightsNews
from neuron.engines import processes
from neuron.weights.downloads import Downloads
from neuron.weights.files import cache_home
from tests.fakes.hub import FakeHub

SHARD = bytes(range(256)) * (16 << 10)
"""4 MiB."""

FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": SHARD,
    "tokenizer.json": b"{}",
    "README.md": b"# Model",
    "modeling.py": b"print('owned')",
    "pytorch_model.bin": SHARD,
}


class Desk:
    """Downloads into a cache of the test's own, and what they said."""

    def __init__(self, downloads: Downloads, tasks: asyncio.TaskGroup) -> None:
        self.downloads = downloads
        self.tasks = tasks
        self.news: list[WeightsNews] = []
        self.progress: list[tuple[str, int | None, int | None]] = []
        self._heard = asyncio.Event()
        downloads.on_news = self._hear

    def _hear(self, news: WeightsNews) -> None:
        self.news.append(news)
        self._heard.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for the news after which `holds` is true."""
        while not holds():
            self._heard.clear()
            await self._heard.wait()

    def begin(self, model: str = "org/name") -> asyncio.Task[RequestError | None]:
        """Fetch a model in the background; the task has the error with which that ends."""
        return self.tasks.create_task(self._outcome(model))

    async def _outcome(self, model: str) -> RequestError | None:
        try:
            await self.fetch(model)
        except RequestError as error:
            return error
        return None

    async def fetch(self, model: str = "org/name", revision: str = "main") -> pathlib.Path:
        """Fetch a model as a load does."""
        return await self.downloads.fetch(model, revision, lambda *news: self.progress.append(news))

    async def refused(self, model: str = "org/name", revision: str = "main") -> RequestError:
        """Fetch a model that cannot be had, and return why."""
        with pytest.raises(RequestError) as caught:
            await self.fetch(model, revision)
        return caught.value

    def configure(self, **changes: Any) -> None:
        """Change where models come from."""
        self.downloads.source = msgspec.structs.replace(self.downloads.source, **changes)

    async def find(self, revision: str = "main") -> pathlib.Path | None:
        """Return where `org/name` is."""
        return await asyncio.to_thread(self.downloads.source.find, "org/name", revision)

    @property
    def home(self) -> pathlib.Path:
        """Where the cache has `org/name`."""
        return cache_home(self.downloads.source.cache, "org/name")

    def partials(self) -> list[int]:
        """Return the sizes of the files that are not whole."""
        return [path.stat().st_size for path in self.home.glob("blobs/*.incomplete")]


async def until_held(hub: FakeHub) -> None:
    """Wait until an answer of the hub hangs."""
    assert await asyncio.to_thread(hub.held.wait, 30)


async def children() -> list[str]:
    """Return command line and environment of the processes that download here."""
    return await asyncio.to_thread(_children)


def _children() -> list[str]:
    found = (_shown(member.pid) for member in processes.family([os.getpid()]))
    return [text for text in found if "weights.fetch" in text]


def _shown(pid: int) -> str:
    folder = pathlib.Path(f"/proc/{pid}")
    try:
        return (folder / "cmdline").read_text() + (folder / "environ").read_text()
    except OSError:
        return ""
