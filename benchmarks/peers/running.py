"""Gateways and the node as processes: started on their core, watched, and ended."""

import asyncio
import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

from benchmarks import scrape
from benchmarks.peers import loads
from benchmarks.peers.places import Place
from cortex_core.server.listen import open_listener
from neuron.engines import processes

READY_S = 60.0
LOOK_S = 0.005
"""Between two looks whether a gateway answers."""

GATEWAY_CORE, OTHER_CORE = 0, 1
"""Node and callers share the other one."""


class Running:
    """A gateway or a node that runs."""

    def __init__(
        self, process: subprocess.Popen[bytes], target: loads.Target, vitals_port: int | None = None
    ) -> None:
        self.process = process
        self.target = target
        self.vitals_port = vitals_port
        self.idle_bytes = 0
        """Resident memory when it had answered some calls and was idle."""
        self.start_s = 0.0
        """From its execution to the end of the first call that it answered; 0 if not looked at."""

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        members = processes.family([self.process.pid])
        return sum(process_cpu_s(member.pid) for member in members)

    def rss_bytes(self) -> int:
        """Return the resident memory of all its processes."""
        return sum(rss_bytes(member.pid) for member in processes.family([self.process.pid]))

    async def vitals(self) -> dict[str, float]:
        """Return the series that it shows; none where it does not."""
        return {} if self.vitals_port is None else await scrape.series(self.vitals_port)


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, as the kernel counts them in nanoseconds; 0 of none.

    Source: `MAKE_PROCESS_CPUCLOCK` in Linux's posix-timers, as clock_getcpuclockid(3) has it.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 of none."""
    try:
        pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def others_cpu_s() -> float:
    """Return the CPU seconds of the machine that were neither ours nor our children's, so far.

    Source: the first line of /proc/stat, proc_stat(5). It is counted in ticks, so that little of
    it is no more than how the kernel counts.
    """
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    # Neither idle nor waiting for a disk; what guests took is in the first two already.
    busy = sum(int(fields[place]) for place in (0, 1, 2, 5, 6, 7))
    ours = sum(process_cpu_s(member.pid) for member in processes.family([os.getpid()]))
    return busy / os.sysconf("SC_CLK_TCK") - ours


def is_pinned() -> bool:
    """Return whether there are cores enough for a gateway to have one of its own."""
    return (os.cpu_count() or 1) > 1 and shutil.which("taskset") is not None


def prepare() -> None:
    """Keep this process off the gateway's core, and let it and its children open many files."""
    if is_pinned():
        os.sched_setaffinity(0, {OTHER_CORE})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def node(module: str = "benchmarks.upstream") -> Iterator[Running]:
    """Run a node in a process of its own, from a module that serves on an inherited socket."""
    listener = open_listener("127.0.0.1:0")
    fd = listener.socket.fileno()
    process = subprocess.Popen([sys.executable, "-m", module, str(fd)], pass_fds=(fd,))
    listener.close()
    try:
        yield Running(process, loads.Target(port=listener.port))
    finally:
        process.terminate()
        process.wait(10)


@contextlib.asynccontextmanager
async def started(place: Place, folder: pathlib.Path, node: int) -> AsyncIterator[Running]:
    """Run a gateway before the node on the port `node` until the context ends.

    Raises:
        RuntimeError: it does not answer.
    """
    port = free_ports()
    command = place.command(folder, port, node)
    if is_pinned():
        command = ["taskset", "-c", str(GATEWAY_CORE), *command]
    begin = time.perf_counter()
    process = _spawned(command, place, folder)
    target = loads.Target(port=port, headers=place.headers(node))
    try:
        running = Running(process, target, port + 1 if place.has_vitals else None)
        await _ready(running)
        running.start_s = time.perf_counter() - begin
        yield running
    finally:
        members = processes.family([process.pid])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        processes.kill(members)
        process.wait()


def free_ports() -> int:
    """Return a port that is free, and the next one too, as far as can be told.

    Both are below those that connections get, of which thousands may be held for a minute after
    their end.
    """
    for port in random.sample(range(20_000, 32_000, 2), 50):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port
    raise RuntimeError("no two ports in a row are free")


def _spawned(command: list[str], place: Place, folder: pathlib.Path) -> subprocess.Popen[bytes]:
    # Those that nothing is installed for have none yet.
    folder.mkdir(parents=True, exist_ok=True)
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
            async with asyncio.timeout(10):
                await loads.sequential(running.target, 1)
            return
        except (OSError, RuntimeError) as error:
            if running.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it does not answer: {error}") from error
        await asyncio.sleep(LOOK_S)


@contextlib.contextmanager
def cpu(running: Running) -> Iterator[Callable[[], float]]:
    """Yield what returns, after the block, the CPU seconds that were spent in it."""
    before = running.cpu_s()
    spent = [0.0]
    yield lambda: spent[0]
    spent[0] = running.cpu_s() - before
