"""A whole neuron in the test's own process: real server, real sockets, simulated engines."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest

from cortex_core.config import to_settings
from cortex_core.server.clock import SystemClock
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Shutdown
from cortex_core.sse import SseDecoder, SseEvent
from neuron.devices.declared import DeclaredSource
from neuron.lifespan import run
from neuron.ports import DeviceSource
from neuron.settings import NeuronSettings
from neuron.weights.downloads import Downloads
from neuron.weights.source import WeightSource
from tests.fakes.hub import FakeHub, hub as fake_hub
from tests.neuron.bench import Bench
from tests.neuron.desk import FILES, Desk

PATIENCE_S = 5.0

Json = Any
"""A JSON document of whatever shape; a test says what it expects of it."""


class RunningNeuron:
    """A neuron that answers, and a client for it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, shutdown: Shutdown) -> None:
        self.url = url
        self.session = session
        self.shutdown = shutdown

    async def get(self, path: str) -> Json:
        """Return a JSON answer, which must be a success."""
        async with self.session.get(self.url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def post(
        self, path: str, body: object, **headers: str
    ) -> tuple[int, Json, Mapping[str, str]]:
        """Return status, JSON body and headers of an answer."""
        async with self.session.post(self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers

    async def load(self, model: str, **spec: object) -> None:
        """Load a model."""
        status, body, _ = await self.post(
            "/models/load", {"model_id": model, "harness": "simulated", **spec}
        )
        assert (status, body) == (200, {"status": "loaded"})

    async def model(self, model: str) -> Json:
        """Return one model's report."""
        models = await self.get("/models")
        return next((entry for entry in models if entry["id"] == model), None)

    async def until(self, holds: Callable[[Json], bool]) -> Json:
        """Watch the event stream until a health report satisfies `holds`, and return it."""
        async with asyncio.timeout(PATIENCE_S):
            async with contextlib.aclosing(self.events()) as events:
                async for event in events:
                    data = json.loads(event.data)
                    health = data["health"] if event.event == "snapshot" else data
                    if event.event in ("snapshot", "health") and holds(health):
                        return health
        raise AssertionError("the event stream ended first")

    async def events(self, last_id: str | None = None) -> AsyncGenerator[SseEvent, None]:
        """Yield the events of `/events`."""
        headers = {"last-event-id": last_id} if last_id is not None else {}
        async with self.session.get(self.url + "/events", headers=headers) as answer:
            assert answer.status == 200
            async for event in events_of(answer):
                yield event


Start = Callable[..., AbstractAsyncContextManager[RunningNeuron]]


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[SseEvent]:
    """Yield the events of a stream."""
    decoder = SseDecoder()
    async for chunk in answer.content.iter_any():
        for event in decoder.feed(chunk):
            yield event


def settings_of(**table: Any) -> NeuronSettings:
    """Return settings of a node with one device of 1000 MiB and quick engines."""
    simulated = {"load_s": 0.01, "decode_tok_per_s": 2000, **table.pop("simulated", {})}
    whole = {
        "host": "127.0.0.1",
        "port": 0,
        "harnesses": [{"name": "simulated"}],
        "devices": [{"index": 0, "name": "SIM", "vram_total_mb": 1000}],
        "harness": {"simulated": simulated, "vllm": table.pop("harness_vllm", {})},
        "reading_interval_s": 0.05,
        **table,
    }
    return to_settings(whole, NeuronSettings, "test")


@contextlib.asynccontextmanager
async def running(
    settings: NeuronSettings, source: DeviceSource | None = None
) -> AsyncIterator[RunningNeuron]:
    """Run a neuron until the context ends; it must end in good order."""
    listener = open_listener("127.0.0.1:0")
    url = listener.url
    shutdown = Shutdown()
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(
            run(
                settings,
                listener=listener,
                source=source or DeclaredSource(settings.devices),
                shutdown=shutdown,
                clock=SystemClock(),
                environ={},
                on_ready=ready.set,
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            try:
                yield RunningNeuron(url, session, shutdown)
            finally:
                shutdown.ask()
                async with asyncio.timeout(2 * PATIENCE_S):
                    await asyncio.wait([life])


@pytest.fixture
def start() -> Start:
    """Return a function that runs a neuron with the given settings."""

    def started(
        source: DeviceSource | None = None, **table: Any
    ) -> AbstractAsyncContextManager[RunningNeuron]:
        return running(settings_of(**table), source)

    return started


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A supervisor over a harness with every fault, closed at the end."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks)
        yield bench
        await bench.close()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub that has `org/name`."""
    with fake_hub() as served:
        served.models["org/name"] = dict(FILES)
        yield served


@pytest.fixture
async def desk(hub: FakeHub, tmp_path: pathlib.Path) -> AsyncIterator[Desk]:
    """Downloads from the hub into an empty cache."""
    source = WeightSource(cache=tmp_path / "cache", endpoint=hub.url)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        downloads = Downloads(source, 2, SystemClock(), tasks)
        yield Desk(downloads, tasks)
        await downloads.close()
