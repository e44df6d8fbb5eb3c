"""What the gateway adds to an answer: `python -m benchmarks.relay`, about half a minute.

A node that computes nothing, the gateway, and the caller are a process each. Every load is put
on the node directly and through the gateway, in turns, so that other work on the machine hits
both. The gateway's own CPU time comes from the kernel.
"""

import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import uvloop
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route

from benchmarks import upstream
from benchmarks.upstream import ANSWER, DONE, run_upstream
from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import from_endpoints, with_facts, with_report
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.server.clock import Clock, SystemClock
from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import NEURON_KEEP_ALIVE_S
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_gateway.api import anthropic, openai
from cortex_gateway.api.background import Background
from cortex_gateway.api.direct import Direct
from cortex_gateway.api.documents import find_pdf_reader
from cortex_gateway.api.responses import ResponsesApi
from cortex_gateway.clients.upstream import open_upstream
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.middleware import Origins
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.settings import GatewaySettings, Timeouts

MODEL = ModelId(upstream.MODEL)
TURNS = 4


async def run_gateway(fd: int, upstream_url: str) -> None:
    from cortex_core.server.listen import ListeningSocket

    node, clock, timeouts = NodeName("node"), SystemClock(), Timeouts()
    facts = NodeFacts(hostname="host", devices=(), harnesses=("none",))
    state = with_facts(from_endpoints({node: upstream_url}), node, facts)
    loaded = Replica(id=ReplicaId(node=node, model=MODEL), status=ReplicaStatus.LOADED)
    state = with_report(state, node, NodeReport(replicas=(loaded,)), clock.now())
    async with open_upstream(timeouts, timeouts) as nodes:
        metrics = GatewayMetrics(CollectorRegistry())
        proxy = Proxy(
            store=FleetStore(state, Catalogue()),
            upstream=nodes,
            settings=LiveSettings(GatewaySettings()),
            metrics=metrics,
            clock=clock,
            journal=Journal(clock, metrics.decided),
            random=random.random,
        )
        drain, shutdown = Drain(), Shutdown()
        listener = Listener(
            app=protect(Origins(Direct(Starlette(routes=routes(proxy, clock))), ()), drain=drain),
            socket=ListeningSocket(socket.socket(fileno=fd)),
            keep_alive_s=NEURON_KEEP_ALIVE_S,
        )
        with shutdown.on_signals():
            async with proxy.lines.running():
                await serve(
                    [listener], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=0
                )


def routes(proxy: Proxy, clock: Clock) -> list[Route]:
    """Return the routes of three dialects, with nothing kept."""
    responses = ResponsesApi(
        proxy,
        None,
        Background(1),
        new_id=lambda: "0" * 32,
        epoch_s=clock.wall,
        read_pdf=find_pdf_reader(),
    )
    return [
        *openai.routes(proxy, clock.wall),
        *anthropic.routes(proxy, find_pdf_reader()),
        *responses.routes(),
    ]


class Target:
    """A server process, its address and its CPU time."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def cpu_s(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(role: str, *arguments: str, module: str = "benchmarks.relay") -> Iterator[Target]:
    """Start one of the server processes; it is gone when the context ends."""
    listener = open_listener("127.0.0.1:0")
    fd = listener.socket.fileno()
    command = [sys.executable, "-m", module, role, str(fd), *arguments]
    process = subprocess.Popen(command, pass_fds=(fd,))
    listener.close()
    try:
        yield Target(process, listener.port)
    finally:
        process.terminate()
        process.wait(10)


def request(*, is_stream: bool, asked: str = "") -> bytes:
    fields = {
        "model": MODEL,
        "stream": is_stream,
        "messages": [{"role": "user", "content": asked + " word" * 100}],
    }
    body = json.dumps(fields).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


async def plain_calls(port: int, count: int) -> list[float]:
    """Make `count` calls on one connection and return how long each took, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data, took = request(is_stream=False), []
    for _ in range(count):
        begin = time.perf_counter()
        writer.write(data)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(ANSWER))
        took.append(time.perf_counter() - begin)
    writer.close()
    return took


async def stream_call(port: int, events: int, gap_s: float) -> list[float]:
    """Read one stream and return the times between its reads, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(is_stream=True, asked=f"{events}/{gap_s} events"))
    await reader.readuntil(b"\r\n\r\n")
    gaps, last, tail = [], time.perf_counter(), b""
    while DONE not in tail:
        data = await reader.read(1 << 16)
        now = time.perf_counter()
        if not data:
            raise RuntimeError("the stream ended without its terminator")
        gaps.append(now - last)
        last, tail = now, tail[-len(DONE) :] + data
    writer.close()
    return gaps


async def streams(port: int, count: int, events: int, gap_s: float) -> list[float]:
    async with asyncio.TaskGroup() as tasks:
        running = []
        for number in range(count):
            running.append(tasks.create_task(stream_call(port, events, gap_s)))
            # Spread over ten gaps, as requests of strangers are.
            await asyncio.sleep(10 * gap_s / count if number else 0)
    return [gap for task in running for gap in task.result()]


async def in_turns(
    direct: Target, gateway: Target, load: Callable[[int], Awaitable[list[float]]]
) -> tuple[list[float], list[float], float, float, float]:
    """Put a load on both in turns.

    Returns:
        Samples of the one and the other, wall seconds of each, and the gateway's CPU seconds.
    """
    samples: dict[int, list[float]] = {direct.port: [], gateway.port: []}
    walls = {direct.port: 0.0, gateway.port: 0.0}
    cpu_s = 0.0
    for _ in range(TURNS):
        for target in (direct, gateway):
            before, begin = target.cpu_s(), time.perf_counter()
            samples[target.port] += await load(target.port)
            walls[target.port] += time.perf_counter() - begin
            if target is gateway:
                cpu_s += target.cpu_s() - before
    return (
        samples[direct.port],
        samples[gateway.port],
        walls[direct.port],
        walls[gateway.port],
        cpu_s,
    )


def p(samples: list[float], q: int) -> float:
    return statistics.quantiles(samples, n=100)[q - 1] * 1000


async def measure(direct: Target, gateway: Target) -> None:
    for target in (direct, gateway):
        await plain_calls(target.port, 200)

    one, two, _, _, cpu_s = await in_turns(direct, gateway, lambda port: plain_calls(port, 300))
    print(
        f"plain, one connection   p50 {p(one, 50):.2f} -> {p(two, 50):.2f} ms"
        f" (added {p(two, 50) - p(one, 50):.2f}), gateway CPU {cpu_s / len(two) * 1e6:.0f} us/request"
    )

    async def crowd(port: int) -> list[float]:
        lists = await asyncio.gather(*(plain_calls(port, 40) for _ in range(32)))
        return [took for took_list in lists for took in took_list]

    one, two, wall_1, wall_2, cpu_s = await in_turns(direct, gateway, crowd)
    print(
        f"plain, 32 connections   {len(one) / wall_1:.0f} -> {len(two) / wall_2:.0f} requests/s"
        f" (ratio {len(two) / wall_2 / (len(one) / wall_1):.3f}),"
        f" gateway CPU {cpu_s / len(two) * 1e6:.0f} us/request"
    )

    for count, gap_s in ((64, 0.005), (200, 0.02)):
        events = round(1.5 / gap_s)
        one, two, wall_1, wall_2, cpu_s = await in_turns(
            direct,
            gateway,
            lambda port: streams(port, count, events, gap_s),  # noqa: B023 - awaited here
        )
        total = TURNS * count * (events + 1)
        print(
            f"{count} streams, {gap_s * 1000:.0f} ms gaps   {total / wall_1:.0f} ->"
            f" {total / wall_2:.0f} events/s (offered {count / gap_s:.0f}),"
            f" gap p99 {p(one, 99):.1f} -> {p(two, 99):.1f} ms,"
            f" gateway CPU {cpu_s / total * 1e6:.1f} us/event"
        )


def main() -> None:
    with (
        started("node") as node,
        started("gateway", f"http://127.0.0.1:{node.port}") as gateway,
    ):
        uvloop.run(measure(node, gateway))


def play(role: str, fd: str, *urls: str) -> None:
    """Be one of the processes that `main` starts."""
    uvloop.run(run_upstream(int(fd)) if role == "node" else run_gateway(int(fd), *urls))


if __name__ == "__main__":
    if sys.argv[1:]:
        play(*sys.argv[1:])
    else:
        main()
