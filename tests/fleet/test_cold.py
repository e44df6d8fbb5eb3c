"""Cold starts and restarts, seen from many callers and from more than one gateway."""

import asyncio
import contextlib
import pathlib
import random
from collections.abc import Awaitable, Iterator
from typing import NamedTuple

import httpx
import pytest

from tests.fleet.daemons import Daemon, gateway, in_flight, simulated_neuron, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CALLERS = 100
MODELS = ("sim/a", "sim/b", "sim/c")
"""Of 24 GiB each takes more than a half."""

RUNS_TOGETHER = 4

CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "simulated"\nvram_mb = 14000\n'
    f"max_in_flight = {RUNS_TOGETHER}\n"
    for model in MODELS
)
SMALL = """
[[models]]
id = "sim/one"
harness = "simulated"
vram_mb = 8000
[[models]]
id = "sim/two"
harness = "simulated"
vram_mb = 8000
"""


class Told(NamedTuple):
    """What a streaming caller was told."""

    heartbeats_first: int
    """Comments before the first event."""
    is_whole: bool
    is_cold: bool


async def stream(client: httpx.AsyncClient, url: str, model: str, tokens: int = 5) -> Told:
    body = {
        "model": model,
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    heartbeats, events, is_whole = 0, 0, False
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        is_cold = answer.headers.get("x-cortex-cold-start") == "true"
        async for line in answer.aiter_lines():
            heartbeats += line.startswith(":") and not events
            events += line.startswith("data:")
            is_whole |= line == "data: [DONE]"
    return Told(heartbeats, is_whole, is_cold)


def caller() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=120, limits=limits)


def loads(neuron: Daemon, model: str = "") -> int:
    """Return how many loads the neuron has ended well."""
    return sum("model loaded" in line and model in line for line in neuron.log)


def test_a_hundred_first_requests_are_one_load_and_a_hundred_answers(
    tmp_path: pathlib.Path,
) -> None:
    """Issue: one load serves all waiters; every stream has a sign of life long before its end."""

    async def ask(url: str) -> list[Told]:
        async with caller() as client:
            return await asyncio.gather(*(stream(client, url, "sim/one") for _ in range(CALLERS)))

    with (
        simulated_neuron(tmp_path, load_s=4.0) as neuron,
        gateway(tmp_path, SMALL, sim=neuron.url) as door,
    ):
        told = asyncio.run(ask(door.url))
        until(lambda: in_flight(neuron) == 0)

    assert loads(neuron) == 1
    assert all(one.is_whole and one.is_cold and one.heartbeats_first >= 1 for one in told)


@contextlib.contextmanager
def two_gateways(folder: pathlib.Path, neuron: Daemon, eviction: str) -> Iterator[list[str]]:
    with contextlib.ExitStack() as doors:
        urls = []
        for name in ("left", "right"):
            (folder / name).mkdir()
            door = doors.enter_context(
                gateway(folder / name, CATALOGUE, more=eviction, sim=neuron.url)
            )
            urls.append(door.url)
        yield urls


def test_two_gateways_load_nothing_twice_and_admit_no_more_than_one(
    tmp_path: pathlib.Path,
) -> None:
    """Issue: the same trace at both; the neuron alone decides, and joins what they ask for."""
    dice = random.Random(4)
    trace = [(dice.randrange(2), dice.choice(MODELS)) for _ in range(60)]
    most = 0

    async def watch(client: httpx.AsyncClient, neuron: Daemon, is_over: asyncio.Event) -> None:
        nonlocal most
        while not is_over.is_set():
            models = (await client.get(f"{neuron.url}/health")).json()["models"]
            running = sum(model["in_flight"] - model["queued"] for model in models)
            most = max(most, running)
            await asyncio.sleep(0.02)

    async def ask(urls: list[str], neuron: Daemon) -> list[Told]:
        is_over = asyncio.Event()
        async with caller() as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(client, neuron, is_over))
            told = await asyncio.gather(
                *(stream(client, urls[door], model, tokens=20) for door, model in trace)
            )
            is_over.set()
        return told

    with (
        simulated_neuron(tmp_path, load_s=0.3, together=RUNS_TOGETHER) as neuron,
        two_gateways(tmp_path, neuron, "[eviction]\nmin_residency_s = 0.5\n") as urls,
    ):
        told = asyncio.run(ask(urls, neuron))
        until(lambda: in_flight(neuron) == 0)
        unloads = sum("model unloaded" in line for line in neuron.log)
        left = neuron.get("/models").json()

    assert all(one.is_whole for one in told)
    assert most <= RUNS_TOGETHER
    # What was loaded was unloaded, or is there: nothing was there twice.
    assert loads(neuron) == unloads + len(left)
    assert loads(neuron) <= len(trace) // 2


def test_a_gateway_that_comes_back_adopts_what_runs_and_what_loads(
    tmp_path: pathlib.Path,
) -> None:
    """Issue: killed while a load runs and 50 streams flow; nothing is loaded again or cut."""

    async def ask(url: str, neuron: Daemon) -> tuple[list[Told], dict[str, str]]:
        async with caller() as client, asyncio.TaskGroup() as tasks:
            first = stream(client, url, "sim/one")
            await first
            flowing = [
                tasks.create_task(stream(client, url, "sim/one", tokens=400)) for _ in range(50)
            ]
            await asyncio.to_thread(until, lambda: in_flight(neuron) == 50)
            with gateway(other, SMALL, sim=neuron.url) as door:
                lost = tasks.create_task(_fails(stream(client, door.url, "sim/two")))
                await asyncio.to_thread(until, lambda: status(neuron, "sim/two") == "loading")
                await asyncio.to_thread(door.kill)
                await lost
            with gateway(other, SMALL, sim=neuron.url) as door:
                # It says that it is ready when every node was asked once, and not before.
                adopted = {
                    entry["id"]: where["status"]
                    for entry in door.get("/v1/models").json()["data"]
                    for where in entry["locations"]
                }
                assert (await stream(client, door.url, "sim/two")).is_whole
            return [await task for task in flowing], adopted

    (other := tmp_path / "other").mkdir()
    with (
        simulated_neuron(tmp_path, load_s=5.0, rate=50) as neuron,
        gateway(tmp_path, SMALL, sim=neuron.url) as door,
    ):
        told, adopted = asyncio.run(ask(door.url, neuron))

    assert adopted == {"sim/one": "loaded", "sim/two": "loading"}
    assert all(one.is_whole for one in told)
    assert loads(neuron) == 2


async def _fails(asked: Awaitable[Told]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        await asked


def status(neuron: Daemon, model: str) -> str | None:
    """Return what the neuron says of a model."""
    models = {entry["id"]: entry["status"] for entry in neuron.get("/models").json()}
    return models.get(model)
