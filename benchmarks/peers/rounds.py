"""Rounds of measuring: every gateway in turn, each fresh, each beside the node itself."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec

from benchmarks.peers import loads
from benchmarks.peers.places import Place
from cortex_core.server.listen import open_listener
from neuron.engines import processes

READY_S = 60.0

GATEWAY_CORE, OTHER_CORE = "0", "1"


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured in one round."""

    turns: int = 6
    """Of the node and the gateway, in the measuring of one call at a time."""
    calls: int = 75
    """In each of those turns."""
    callers: int = 32
    crowd_calls: int = 60
    """Of each caller of the crowd."""
    streams: int = 64
    chunks: int = 250
    gap_s: float = 0.005
    rate_per_s: float = 200.0
    due_calls: int = 600
    """Calls that are sent at that rate."""
    big_bytes: int = 1 << 20
    open_streams: int = 500
    """Streams that are open while memory is measured."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway came to in one round."""

    name: str
    added_p50_ms: float
    """One call at a time: the median over turns of what the medians differ by."""
    added_big_p50_ms: float
    """Likewise with a body of a megabyte."""
    due_p50_ms: float
    due_p99_ms: float
    due_p999_ms: float
    """From when a call was due, at a constant rate."""
    calls_per_s: float
    """Of the crowd."""
    cpu_s_per_1000_calls: float
    cpu_s_per_1000_chunks: float | None
    """`None`, as what follows of streams, where it does not stream."""
    chunks_per_s: float | None
    gap_p99_ms: float | None
    idle_mib: float
    """Resident memory after the first calls."""
    stream_kib: float | None
    """Resident memory that each open stream adds."""


class Running:
    """A gateway that runs."""

    def __init__(self, process: subprocess.Popen[bytes], target: loads.Target) -> None:
        self.process = process
        self.target = target

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        return sum(_cpu_s(member.pid) for member in processes.family([self.process.pid]))

    def rss_bytes(self) -> int:
        """Return the resident memory of all its processes."""
        pages = sum(_pages(member.pid) for member in processes.family([self.process.pid]))
        return pages * os.sysconf("SC_PAGE_SIZE")


def free_ports() -> int:
    """Return a port that is free, and the next one too, as far as can be told."""
    for _ in range(50):
        listener = open_listener("127.0.0.1:0")
        port = listener.port
        listener.close()
        with contextlib.suppress(OSError), socket.socket() as other:
            other.bind(("127.0.0.1", port + 1))
            return port
    raise RuntimeError("no two ports in a row are free")


@contextlib.asynccontextmanager
async def started(place: Place, folder: pathlib.Path, node: int) -> AsyncIterator[Running]:
    """Run a gateway before the node on `node` until the context ends."""
    port = free_ports()
    command = place.command(folder, port, node)
    if shutil.which("taskset") and (os.cpu_count() or 1) > 1:
        command = ["taskset", "-c", GATEWAY_CORE, *command]
    process = _spawned(command, place, folder)
    try:
        running = Running(process, loads.Target(port=port, headers=place.headers(node)))
        await _ready(running)
        yield running
    finally:
        members = processes.family([process.pid])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        processes.kill(members)
        process.wait()


def _spawned(command: list[str], place: Place, folder: pathlib.Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, **place.environ},
            start_new_session=True,
        )


async def _ready(running: Running) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            await loads.sequential(running.target, 1)
            return
        except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
            if running.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it does not answer: {error}") from error
        await asyncio.sleep(0.05)


async def measure(name: str, gateway: Running, node: loads.Target, sizes: Sizes) -> Round:
    """Put every load on a gateway."""
    target = gateway.target
    for warmed in (node, target):
        await loads.sequential(warmed, 100)
    await loads.crowd(target, sizes.callers, 3)
    idle = gateway.rss_bytes()
    added = await _added_s(target, node, sizes, 500)
    added_big = await _added_s(target, node, sizes, sizes.big_bytes)
    due = sorted(await loads.open_loop(target, sizes.rate_per_s, sizes.due_calls))
    with _cpu(gateway) as crowd_cpu_s:
        crowd_s = await loads.crowd(target, sizes.callers, sizes.crowd_calls)
    calls = sizes.callers * sizes.crowd_calls
    with _cpu(gateway) as stream_cpu_s:
        found = await _streams(target, sizes)
    return Round(
        name=name,
        added_p50_ms=1000 * added,
        added_big_p50_ms=1000 * added_big,
        due_p50_ms=1000 * due[len(due) // 2],
        due_p99_ms=1000 * due[len(due) * 99 // 100],
        due_p999_ms=1000 * due[len(due) * 999 // 1000],
        calls_per_s=calls / crowd_s,
        cpu_s_per_1000_calls=1000 * crowd_cpu_s() / calls,
        cpu_s_per_1000_chunks=None if found is None else 1000 * stream_cpu_s() / found.chunks,
        chunks_per_s=None if found is None else found.chunks / found.wall_s,
        gap_p99_ms=None if found is None else _p99_ms(found.gaps_s),
        idle_mib=idle / (1 << 20),
        stream_kib=None if found is None else await _stream_bytes(gateway, sizes) / 1024,
    )


def _p99_ms(seconds: list[float]) -> float | None:
    """Return the 99th percentile, or `None` of nothing: all came in one read."""
    return 1000 * sorted(seconds)[len(seconds) * 99 // 100] if seconds else None


async def _streams(target: loads.Target, sizes: Sizes) -> loads.Streams | None:
    """Return what came of streams, or `None` where there are none."""
    found = None
    try:
        found = await loads.streams(target, sizes.streams, sizes.chunks, sizes.gap_s)
    except* RuntimeError as group:
        print(f"no streams: {group.exceptions[0]}", file=sys.stderr)
    return found


async def _added_s(
    target: loads.Target, node: loads.Target, sizes: Sizes, prompt_bytes: int
) -> float:
    calls = sizes.calls if prompt_bytes < 1 << 16 else max(5, sizes.calls // 10)
    differences = []
    for _ in range(sizes.turns):
        direct, through = [
            statistics.median(await loads.sequential(one, calls, prompt_bytes=prompt_bytes))
            for one in (node, target)
        ]
        differences.append(through - direct)
    return statistics.median(differences)


async def _stream_bytes(gateway: Running, sizes: Sizes) -> float:
    """Return the memory that each of many open streams adds, as seen half-way through."""
    before, count, seen = gateway.rss_bytes(), sizes.open_streams, 0
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(loads.streams(gateway.target, count, 20, 0.25))
        await asyncio.sleep(4.0)
        seen = gateway.rss_bytes()
        await reading
    return max(0, seen - before) / count


@contextlib.contextmanager
def _cpu(gateway: Running) -> Iterator[Callable[[], float]]:
    """Yield what returns, after the block, the CPU seconds that the gateway spent in it."""
    before = gateway.cpu_s()
    spent = [0.0]
    yield lambda: spent[0]
    spent[0] = gateway.cpu_s() - before


def _fields(pid: int) -> list[str]:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    fields = _fields(pid)
    ticks = int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _pages(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[21]) if fields else 0
