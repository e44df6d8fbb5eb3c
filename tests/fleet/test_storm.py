"""Twelve models, three unlike nodes, eight callers of whom one runs away: real processes."""

import asyncio
import contextlib
import pathlib
import random
from collections import Counter

import httpx
import pytest

from tests.fleet.daemons import gateway, in_flight, started, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NEURON = """
host = "127.0.0.1"
port = 0
sleep_budget_mb = 30000
[[harnesses]]
name = "simulated"
[harness.simulated]
load_s = 0.3
wake_s = 0.1
sleep_s = 0.05
decode_tok_per_s = 400
max_in_flight = 16
[[devices]]
index = 0
name = "SIM"
vram_total_mb = {vram_mb}
"""

DEVICES_GIB = (24, 24, 48)
SIZES_GB = (6, 8, 8, 10, 12, 14, 14, 16, 18, 20, 30, 40)
"""About twice what the devices hold together."""

CATALOGUE = "".join(
    f'[[models]]\nid = "sim/m{number}"\nharness = "simulated"\nvram_mb = {size * 1000}\n'
    for number, size in enumerate(SIZES_GB)
)
EVICTION = '[eviction]\nmin_residency_s = 1.0\nstrategy = "cost"\n'

BURSTS = 8
RUNAWAYS = 25
"""Requests in each burst of the runaway; others send up to four."""


def wanted(dice: random.Random) -> str:
    """Return a model; a few are asked for most."""
    return f"sim/m{min(len(SIZES_GB), int(dice.paretovariate(0.7))) - 1}"


async def ask(client: httpx.AsyncClient, url: str, who: str, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}
    answer = await client.post(
        f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {who}"}
    )
    return answer.status_code


async def calls(client: httpx.AsyncClient, url: str, number: int) -> list[int]:
    """Ask in bursts, and return the statuses."""
    dice, asked = random.Random(number), list[asyncio.Task[int]]()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(BURSTS):
            model = wanted(dice)
            count = RUNAWAYS if number == 0 else dice.choice((1, 1, 4))
            asked += [
                tasks.create_task(ask(client, url, f"caller-{number}", model)) for _ in range(count)
            ]
            await asyncio.sleep(dice.expovariate(2.0))
    return [task.result() for task in asked]


async def overcommitted(client: httpx.AsyncClient, neurons: list[str], done: asyncio.Event) -> int:
    """Watch what the nodes hold until all is done, and return how often it was too much."""
    found = 0
    while not done.is_set():
        for url, size_gib in zip(neurons, DEVICES_GIB, strict=True):
            models = (await client.get(f"{url}/models")).json()
            held = sum(m["vram_used_mb"] or 0 for m in models if m["status"] != "sleeping")
            found += held > size_gib * 1024
        await asyncio.sleep(0.05)
    return found


async def storm(url: str, neurons: list[str]) -> tuple[Counter[int], int]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    done = asyncio.Event()
    async with httpx.AsyncClient(timeout=120, limits=limits) as client, asyncio.TaskGroup() as all_:
        watch = all_.create_task(overcommitted(client, neurons, done))
        statuses = await asyncio.gather(*(calls(client, url, number) for number in range(8)))
        done.set()
    return Counter(status for one in statuses for status in one), watch.result()


def test_a_storm_loses_nothing_and_overcommits_nothing(tmp_path: pathlib.Path) -> None:
    """Issue: three nodes, 12 models, 8 callers, one of them a runaway."""
    with contextlib.ExitStack() as daemons:
        nodes = {}
        for name, size_gib in zip("abc", DEVICES_GIB, strict=True):
            (folder := tmp_path / name).mkdir()
            (folder / "neuron.toml").write_text(NEURON.format(vram_mb=size_gib * 1024))
            config = folder / "neuron.toml"
            nodes[name] = daemons.enter_context(started("neuron", config, r"ready: http://(\S+)"))
        urls = {name: node.url for name, node in nodes.items()}
        door = daemons.enter_context(gateway(tmp_path, CATALOGUE, more=EVICTION, **urls))
        statuses, overcommits = asyncio.run(storm(door.url, list(urls.values())))
        until(lambda: sum(in_flight(node) for node in nodes.values()) == 0)
        decided = door.get("/admin/decisions?limit=1000").json()["decisions"]
        errors = [line for line in door.log if "ERROR" in line or "Traceback" in line]

    moved = Counter(one["kind"] for one in decided if "took_s" in one)
    assert set(statuses) == {200}
    assert overcommits == 0
    assert moved["evict"] > 0
    # Turns bound the swaps: without them there could be one for nearly every burst.
    assert moved["load"] + moved["wake"] <= 8 * BURSTS
    assert errors == []
