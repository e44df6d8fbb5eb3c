"""One process against two workers: `python -m benchmarks.workers [ROUNDS]`.

The same gateway, started both ways over one node that computes nothing, is loaded in turns. What
counts is the CPU time of all its processes, and how much of it the busiest process has: that one
is the first to fill its core, so what can be served grows with the work per CPU second of it.
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


async def calls(port: int) -> int:
    """Make short calls over many connections."""
    await asyncio.gather(*(relay.plain_calls(port, CALLS) for _ in range(CALLERS)))
    return CALLERS * CALLS


async def events(port: int) -> int:
    """Read many streams."""
    await relay.streams(port, STREAMS, EVENTS, GAP_S)
    return STREAMS * EVENTS


async def measure(gateways: dict[int, Gateway], rounds: int) -> None:
    """Load all in turns, and print what it took."""
    for title, load in (("request", calls), ("streamed event", events)):
        for gateway in gateways.values():
            await load(gateway.port)
        total: dict[int, list[float]] = {count: [] for count in gateways}
        busiest: dict[int, list[float]] = {count: [] for count in gateways}
        spread: list[float] = []
        for number in range(rounds):
            for count in sorted(gateways, reverse=bool(number % 2)):
                before = gateways[count].spent_us()
                done = await load(gateways[count].port)
                after = gateways[count].spent_us()
                spent = [after[pid] - before.get(pid, 0.0) for pid in after]
                total[count].append(sum(spent) / done)
                busiest[count].append(max(spent) / done)
                if count > 1:
                    spread.append(max(spent[1:]) / sum(spent[1:]))
        _show(title, total, busiest, spread)


def _show(
    title: str,
    total: dict[int, list[float]],
    busiest: dict[int, list[float]],
    spread: list[float],
) -> None:
    for count in total:
        print(
            f"{title:16}workers {count}: {statistics.median(total[count]):8.1f} us CPU in all, "
            f"{statistics.median(busiest[count]):8.1f} in the busiest process"
        )
    pairs = zip(busiest[1], busiest[2], strict=True)
    gain = statistics.median(one / two for one, two in pairs)
    print(f"{title:16}x{gain:.2f} before a core is full; busiest worker has {max(spread):.0%}")


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
