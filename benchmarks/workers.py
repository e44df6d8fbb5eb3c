"""One process against two workers: `python -m benchmarks.workers [ROUNDS]`.

The same gateway, started both ways over one node that computes nothing, is loaded in turns: each
worker with as many callers as the one process. What counts is the CPU time of all its processes,
which says what so many cores can serve, and how much of it the busiest process has, which is the
first to fill its core. Where there are cores for the workers, the deciding process, the node and
the callers, what was served in a second is shown too.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import relay

CALLERS, CALLS = 32, 20
STREAMS, EVENTS, GAP_S = 64, 60, 0.01
START_S = 60.0

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
    control_us: float
    """CPU time of the process that was started."""
    workers_us: tuple[float, ...]
    """CPU time of each worker; none with one process."""

    @property
    def total_us(self) -> float:
        """CPU time of all processes."""
        return self.control_us + sum(self.workers_us)

    @property
    def busiest_us(self) -> float:
        """CPU time of the busiest process."""
        return max(self.control_us, *self.workers_us, 0.0)


async def measure(gateways: dict[int, Gateway], rounds: int) -> None:
    """Load all in turns, and print what it took."""
    for title, load in (("request", calls), ("streamed event", events)):
        for count, gateway in gateways.items():
            await load(gateway.port, count)
        found: dict[int, list[Round]] = {count: [] for count in gateways}
        for number in range(rounds):
            for count in sorted(gateways, reverse=bool(number % 2)):
                before, began = gateways[count].spent_us(), time.perf_counter()
                done = await load(gateways[count].port, count)
                wall_us, after = (time.perf_counter() - began) * 1e6, gateways[count].spent_us()
                control, *workers = [(after[pid] - before.get(pid, 0.0)) / done for pid in after]
                found[count].append(Round(wall_us / done, control, tuple(workers)))
        _show(title, found)


def _show(title: str, found: dict[int, list[Round]]) -> None:
    for count, rounds in found.items():
        print(
            f"{title:16}workers {count}: {_median(rounds, lambda r: r.total_us):8.1f} us CPU in all, "
            f"{_median(rounds, lambda r: r.busiest_us):8.1f} in the busiest process, "
            f"{_median(rounds, lambda r: r.control_us):8.1f} in the first"
        )
    (_, one), (count, many) = found.items()
    pairs = list(zip(one, many, strict=True))
    on_all = statistics.median(count * a.total_us / b.total_us for a, b in pairs)
    busiest = statistics.median(a.busiest_us / b.busiest_us for a, b in pairs)
    share = max(max(r.workers_us) / sum(r.workers_us) for r in many)
    print(
        f"{title:16}x{on_all:.2f} with {count} cores full, x{busiest:.2f} before the busiest "
        f"process fills one; a worker had at most {share:.0%} of the work of all workers"
    )
    if (os.cpu_count() or 1) >= count + 3:
        served = statistics.median(a.wall_us / b.wall_us for a, b in pairs)
        print(f"{title:16}x{served:.2f} served in a second")


def _median(rounds: list[Round], figure: Callable[[Round], float]) -> float:
    return statistics.median(map(figure, rounds))


def main(rounds: str = "9") -> None:
    """Start everything, measure, and end it."""
    with tempfile.TemporaryDirectory() as folder, relay.started("node") as node:
        gateways: dict[int, Gateway] = {}
        try:
            for count in (1, 2):
                home = Path(folder) / str(count)
                home.mkdir()
                gateways[count] = Gateway(count, node.port, home)
            uvloop.run(measure(gateways, int(rounds)))
        finally:
            for gateway in gateways.values():
                gateway.end()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main(*sys.argv[1:])
