"""One process against two workers: `python -m benchmarks.workers [ROUNDS]`.

The same gateway, started in several ways over one node that computes nothing, is loaded in turns:
each worker with as many callers as the one process. Two gateways that know nothing of each other
show what the machine has to give. What counts is the CPU time of all processes, which says what
so many cores can serve, and how much of it the busiest process has, which is the first to fill its
core. Where there are cores for all, what was served in a second is shown too.
"""

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import relay

CALLERS, CALLS = 32, 20
STREAMS, EVENTS, GAP_S = 64, 60, 0.01
START_S = 60.0

ONE, WORKERS = "one process", 2
ENOUGH_CORES = (os.cpu_count() or 1) >= WORKERS + 3
"""For the workers, the deciding process, the node and the callers."""

SETTINGS = """
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
workers = {workers}
[gateway.queue]
max_in_flight = 1024
[[neurons]]
name = "node"
endpoint = "http://127.0.0.1:{port}"
"""


class Gateway:
    """A gateway with so many workers over the node at `port`."""

    def __init__(self, workers: int, port: int, folder: Path) -> None:
        (folder / "models.toml").write_text("")
        (folder / "cortex.toml").write_text(SETTINGS.format(workers=workers, port=port))
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cortex_gateway", "--config", str(folder / "cortex.toml")],
                stderr=log,
                stdout=log,
            )
        self.port = int(self._until(self._address))
        self._until(self._answers)

    def spent_us(self) -> dict[int, float]:
        """Return the CPU time of each process."""
        task = Path(f"/proc/{self.process.pid}/task")
        texts = [(thread / "children").read_text() for thread in task.iterdir()]
        pids = [self.process.pid, *(int(pid) for text in texts for pid in text.split())]
        return {pid: _cpu_us(pid) for pid in pids}

    def end(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(60)

    def _address(self) -> str | None:
        found = re.search(r"listening on [^ ]*:(\d+),", self._log.read_text())
        return found and found[1]

    def _answers(self) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                return "yes"
        except (urllib.error.URLError, OSError):
            return None

    def _until(self, ask: Callable[[], str | None]) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if found := ask():
                return found
            time.sleep(0.1)
        raise SystemExit(f"no gateway came up: {self._log.read_text()}")


def _cpu_us(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1000


async def calls(port: int, workers: int) -> int:
    """Make short calls over many connections."""
    callers = CALLERS * workers
    await asyncio.gather(*(relay.plain_calls(port, CALLS) for _ in range(callers)))
    return callers * CALLS


async def events(port: int, workers: int) -> int:
    """Read many streams."""
    await relay.streams(port, STREAMS * workers, EVENTS, GAP_S)
    return STREAMS * workers * EVENTS


class Round(NamedTuple):
    """What one round took, for each request or event."""

    wall_us: float
    spent_us: tuple[float, ...]
    """CPU time of each process."""

    @property
    def total_us(self) -> float:
        """CPU time of all processes."""
        return sum(self.spent_us)

    @property
    def busiest_us(self) -> float:
        """CPU time of the busiest process."""
        return max(self.spent_us)


Load = Callable[[int, int], Awaitable[int]]

Way = Sequence[tuple[Gateway, int]]
"""Gateways that are loaded together, and for how many processes each."""


async def measure(ways: dict[str, Way], rounds: int) -> None:
    """Load all in turns, and print what it took."""
    loads: dict[str, Load] = {"request": calls, "streamed event": events}
    for title, load in loads.items():
        for way in ways.values():
            await _round(way, load)
        found: dict[str, list[Round]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in sorted(ways, reverse=bool(number % 2)):
                found[name].append(await _round(ways[name], load))
        _show(title, found)


async def _round(way: Way, load: Load) -> Round:
    before, began = [gateway.spent_us() for gateway, _ in way], time.perf_counter()
    done = sum(await asyncio.gather(*(load(gateway.port, count) for gateway, count in way)))
    wall_us = (time.perf_counter() - began) * 1e6
    spent = tuple(
        (spent - old.get(pid, 0.0)) / done
        for (gateway, _), old in zip(way, before, strict=True)
        for pid, spent in gateway.spent_us().items()
    )
    return Round(wall_us / done, spent)


def _show(title: str, found: dict[str, list[Round]]) -> None:
    one = found[ONE]
    for name, rounds in found.items():
        print(
            f"{title:16}{name:14}{_median(rounds, lambda r: r.total_us):8.1f} us CPU in all, "
            f"{_median(rounds, lambda r: r.busiest_us):8.1f} in the busiest process, "
            f"{_median(rounds, lambda r: r.spent_us[0]):8.1f} in the first"
        )
        if name == ONE:
            continue
        pairs = list(zip(one, rounds, strict=True))
        on_all = statistics.median(WORKERS * a.total_us / b.total_us for a, b in pairs)
        busiest = statistics.median(a.busiest_us / b.busiest_us for a, b in pairs)
        served = statistics.median(a.wall_us / b.wall_us for a, b in pairs)
        print(
            f"{title:16}{name:14}x{on_all:.2f} with {WORKERS} cores full, x{busiest:.2f} before "
            "the busiest process fills one"
            + (f", x{served:.2f} served in a second" if ENOUGH_CORES else "")
        )


def _median(rounds: list[Round], figure: Callable[[Round], float]) -> float:
    return statistics.median(map(figure, rounds))


def main(rounds: str = "9") -> None:
    """Start everything, measure, and end it."""
    with tempfile.TemporaryDirectory() as folder, relay.started("node") as node:
        gateways: list[Gateway] = []
        try:
            for number, workers in enumerate((1, 1, WORKERS)):
                home = Path(folder) / str(number)
                home.mkdir()
                gateways.append(Gateway(workers, node.port, home))
            one, other, many = gateways
            ways: dict[str, Way] = {
                ONE: [(one, 1)],
                "two apart": [(one, 1), (other, 1)],
                "two workers": [(many, WORKERS)],
            }
            uvloop.run(measure(ways, int(rounds)))
        finally:
            for gateway in gateways:
                gateway.end()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main(*sys.argv[1:])
