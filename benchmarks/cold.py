"""What the gateway adds to a load that it makes by itself: `python -m benchmarks.cold [ROUNDS]`.

A neuron with simulated engines, whose loads take a known time, is asked for a model that it has
not loaded: by hand (load, then ask) and through the gateway (ask), in turns. The same where
another model has to be unloaded first. What the gateway takes beyond the work by hand is its
decision, its command, and how late it learns that the model serves.
"""

import argparse
import asyncio
import contextlib
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
import msgspec

from benchmarks.page import with_table
from cortex_core.server.listen import open_listener

LOAD_S = 0.2
WAIT_S = 30.0
LOOK_S = 0.005
SETTLE_S = 0.5
"""Nodes tell what their devices have free every 0.2 s; a load right after an unload waits for it."""
FIRST, SECOND = "org/first", "org/second"

_NEURON = f"""
host = "127.0.0.1"
port = PORT
log_level = "warning"

[[harnesses]]
name = "simulated"

[harness.simulated]
load_s = {LOAD_S}
can_sleep = false
decode_tok_per_s = 1e6
prefill_tok_per_s = 1e6
vram_mb = {{ "{FIRST}" = 1000, "{SECOND}" = 1000 }}

[[devices]]
index = 0
name = "room for one"
vram_total_mb = 1500
"""
_MODELS = f"""
[[models]]
id = "{FIRST}"
harness = "simulated"
vram_mb = 1000

[[models]]
id = "{SECOND}"
harness = "simulated"
vram_mb = 1000
"""
_GATEWAY = """
models_config = "models.toml"

[gateway]
listen = "127.0.0.1:PORT"
metrics_listen = "127.0.0.1:METRICS"
log_level = "warning"

[eviction]
min_residency_s = 0

[[neurons]]
name = "node"
endpoint = "http://127.0.0.1:NEURON"
"""


class Fleet:
    """A neuron and a gateway in front of it.

    Args:
        http: asks both.
        neuron: URL.
        gateway: URL.
    """

    def __init__(self, http: aiohttp.ClientSession, neuron: str, gateway: str) -> None:
        self._http = http
        self.neuron, self.gateway = neuron, gateway

    async def ask(self, base: str, model: str) -> None:
        """Ask a model for one token."""
        messages = [{"role": "user", "content": "hello"}]
        fields = {"model": model, "messages": messages, "max_tokens": 1}
        await self._post(f"{base}/v1/chat/completions", fields)

    async def load(self, model: str) -> None:
        """Load a model by hand."""
        await self._post(f"{self.neuron}/models/load", {"model_id": model, "harness": "simulated"})

    async def unload(self, model: str) -> None:
        """Unload a model by hand."""
        await self._post(f"{self.neuron}/models/unload", {"model_id": model})

    async def ready(self) -> None:
        """Wait until the gateway has heard of the neuron."""
        deadline = time.monotonic() + WAIT_S
        while await self._health() != "ok":
            if time.monotonic() > deadline:
                raise TimeoutError("the gateway has not heard of the neuron")
            await asyncio.sleep(LOOK_S)

    async def _health(self) -> str | None:
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with self._http.get(f"{self.gateway}/health") as answer:
                status: str = (await answer.json())["status"]
                return status
        return None

    async def known(self, loaded: set[str]) -> None:
        """Wait until the gateway has learnt that just these models are loaded."""
        deadline = time.monotonic() + WAIT_S
        while (found := await self._loaded()) != loaded:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gateway sees {found}, not {loaded}")
            await asyncio.sleep(LOOK_S)

    async def _loaded(self) -> set[str]:
        async with self._http.get(f"{self.gateway}/v1/models") as answer:
            models = (await answer.json())["data"]
            return {one["id"] for one in models if one["locations"]}

    async def _post(self, url: str, fields: dict[str, object]) -> None:
        async with self._http.post(url, json=fields) as answer:
            text = await answer.text()
        if answer.status != 200:
            raise RuntimeError(f"{url} answers {answer.status}: {text}")


@contextlib.asynccontextmanager
async def fleet(folder: pathlib.Path) -> AsyncIterator[Fleet]:
    """Run a neuron and a gateway; both are gone afterwards."""
    ports = [_free_port() for _ in range(3)]
    neuron, gateway, metrics = map(str, ports)
    names = {"METRICS": metrics, "NEURON": neuron}
    (folder / "models.toml").write_text(_MODELS)
    with contextlib.ExitStack() as ending:
        for module, text, port in (
            ("neuron", _NEURON, neuron),
            ("cortex_gateway", _GATEWAY, gateway),
        ):
            for name, value in {**names, "PORT": port}.items():
                text = text.replace(name, value)
            ending.enter_context(_process(module, folder / f"{module}.toml", text))
        bound = aiohttp.ClientTimeout(total=WAIT_S)
        async with aiohttp.ClientSession(timeout=bound) as http:
            made = Fleet(http, f"http://127.0.0.1:{neuron}", f"http://127.0.0.1:{gateway}")
            await made.ready()
            yield made


@contextlib.contextmanager
def _process(module: str, path: pathlib.Path, text: str) -> Iterator[None]:
    path.write_text(text)
    command = [sys.executable, "-m", module, "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _free_port() -> int:
    listener = open_listener("127.0.0.1:0")
    listener.close()
    return listener.port


async def _load_by_hand(fleet: Fleet) -> None:
    await fleet.load(FIRST)
    await fleet.ask(fleet.neuron, FIRST)


async def _swap_by_hand(fleet: Fleet) -> None:
    await fleet.unload(SECOND)
    await _load_by_hand(fleet)


async def _through(fleet: Fleet) -> None:
    await fleet.ask(fleet.gateway, FIRST)


KINDS = {"load": (_load_by_hand, set[str]()), "swap": (_swap_by_hand, {SECOND})}
"""What is measured: how it is done by hand, and what is loaded before."""


class Seconds(msgspec.Struct, frozen=True):
    """How long both ways took in one round."""

    by_hand: float
    through: float


async def measure(fleet: Fleet, rounds: int) -> dict[str, list[Seconds]]:
    """Return the times of all rounds by what was measured."""
    found: dict[str, list[Seconds]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind, (by_hand, before) in KINDS.items():
            took = {}
            ways = (by_hand, _through) if number % 2 else (_through, by_hand)
            for way in ways:
                for model in before:
                    await fleet.load(model)
                await fleet.known(before)
                await asyncio.sleep(SETTLE_S)
                begin = time.perf_counter()
                await way(fleet)
                took[way] = time.perf_counter() - begin
                await fleet.unload(FIRST)
                await fleet.known(set())
            # The first round opens connections.
            if number:
                found[kind].append(Seconds(by_hand=took[by_hand], through=took[_through]))
    return found


def table(found: dict[str, list[Seconds]], rounds: int) -> str:
    """Return the table of a run."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"A load of {LOAD_S * 1000:.0f} ms; {today}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {rounds} rounds; ms, medians, lowest and highest added.",
        "",
        "| what | by hand | through the gateway | added |",
        "|---|---|---|---|",
    ]
    for kind, rows in found.items():
        added = [1000 * (row.through - row.by_hand) for row in rows]
        hand = statistics.median(1000 * row.by_hand for row in rows)
        through = statistics.median(1000 * row.through for row in rows)
        lines.append(
            f"| {kind} | {hand:.1f} | {through:.1f} | {statistics.median(added):.1f} "
            f"({min(added):.1f} to {max(added):.1f}) |"
        )
    return "\n".join(lines) + "\n"


async def run(rounds: int) -> dict[str, list[Seconds]]:
    """Run a fleet and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(pathlib.Path(folder)) as made:
            return await measure(made, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=15)
    parser.add_argument("--page", type=pathlib.Path, help="put the table into this page")
    options = parser.parse_args()
    shown = table(asyncio.run(run(options.rounds)), options.rounds)
    print(shown)
    if options.page is not None:
        options.page.write_text(with_table(options.page.read_text(), "cold", shown))


if __name__ == "__main__":
    main()
