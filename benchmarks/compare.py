"""One checkout against others: `python -m benchmarks.compare ROUNDS NAME=FOLDER...`.

Each folder's gateway relays for one node that computes nothing, and each folder's server serves
an app that does nothing. All are loaded in turns, many short ones, so that other work on the
machine hits all alike; what counts is the CPU time that the kernel gives, as a ratio to the
first. Servers have core 0, node and callers the others.
"""

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks import relay
from benchmarks.upstream import ANSWER
from cortex_core.server.listen import open_listener

PACKAGES = ("cortex-core", "cortex-gateway", "neuron", "cortex-cli")
STREAMS, EVENTS, GAP_S = 48, 60, 0.005

Load = Callable[[int], Awaitable[int]]
"""Loads a port; returns for how many things its CPU time is to be divided."""

APP = """
import os, socket, sys
from cortex_core.server.drain import Drain
from cortex_core.server.listen import ListeningSocket
from cortex_core.server.serve import Listener, Shutdown, run, serve
from cortex_core.server.stack import protect

async def app(scope, receive, send):
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    if scope["type"] == "http":
        headers = [(b"content-type", b"application/json"), (b"content-length", sys.argv[2].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * int(sys.argv[2])})

async def main():
    drain, shutdown = Drain(), Shutdown()
    sock = ListeningSocket(socket.socket(fileno=int(sys.argv[1])))
    listener = Listener(app=protect(app, drain=drain), socket=sock, keep_alive_s=75)
    with shutdown.on_signals():
        await serve([listener], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=0)

sys.exit(run(main(), "app", {}))
"""


class Server:
    """A process of one checkout, on a port."""

    def __init__(self, folder: Path, core: int | None, *command: str) -> None:
        listener = open_listener("127.0.0.1:0")
        self.port = listener.port
        fd = listener.socket.fileno()
        paths = [*(str(folder / "packages" / name / "src") for name in PACKAGES), str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, *(part.replace("FD", str(fd)) for part in command)],
            pass_fds=(fd,),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        listener.close()
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})

    def cpu_us(self) -> float:
        """Return the CPU time of all threads, which the kernel counts in nanoseconds."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1000

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)


async def one_connection(port: int) -> int:
    return len(await relay.plain_calls(port, 150))


async def many_connections(port: int) -> int:
    return sum(map(len, await asyncio.gather(*(relay.plain_calls(port, 10) for _ in range(32)))))


async def new_connections(port: int) -> int:
    for _ in range(40):
        await relay.plain_calls(port, 1)
    return 40


async def events(port: int) -> int:
    await relay.streams(port, STREAMS, EVENTS, GAP_S)
    return STREAMS * (EVENTS + 1)


async def measure(servers: dict[str, Server], loads: dict[str, Load], rounds: int) -> None:
    for server in servers.values():
        await relay.plain_calls(server.port, 200)
    for title, load in loads.items():
        spent: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(rounds):
            for name in list(servers)[:: -1 if number % 2 else 1]:
                before = servers[name].cpu_us()
                count = await load(servers[name].port)
                spent[name].append((servers[name].cpu_us() - before) / count)
        show(title, spent)


def show(title: str, spent: dict[str, list[float]]) -> None:
    first = next(iter(spent.values()))
    for name, values in spent.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        print(f"{title:34}{name:12}{statistics.median(values):8.1f} us   ratio {ratio:.3f}")


def main(rounds: str, *folders: str) -> None:
    named = {name: Path(folder) for name, _, folder in (f.partition("=") for f in folders)}
    started: list[Server] = []

    def start(folder: Path, core: int | None, *command: str) -> Server:
        started.append(Server(folder, core, *command))
        return started[-1]

    try:
        # The node is this checkout's, as the callers are, which have to agree.
        here = Path(__file__).parents[1]
        node = start(here, None, "-m", "benchmarks.relay", "node", "FD")
        url = f"http://127.0.0.1:{node.port}"
        gateway = ("-m", "benchmarks.relay", "gateway", "FD", url)
        gateways = {name: start(folder, 0, *gateway) for name, folder in named.items()}
        apps = {
            name: start(folder, 0, "-c", APP, "FD", str(len(ANSWER)))
            for name, folder in named.items()
        }
        calls: dict[str, Load] = {
            "request, one connection": one_connection,
            "request, 32 connections": many_connections,
            "request, its own connection": new_connections,
        }
        for title, servers, loads in (
            ("app", apps, calls),
            ("gateway", gateways, {**calls, "streamed event": events}),
        ):
            print(title)
            uvloop.run(measure(servers, loads, int(rounds)))
    finally:
        for server in started:
            server.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
