"""The engine behind a neuron and behind `vllm serve`: `python -m benchmarks.engine [ROUNDS]`.

Both serve the built-in models with the same weights, options and environment, on the same load.
One of them lives at a time: a round starts each, loads it, and ends it, and the order changes
from round to round. The engine core is a process of its own in both, so that the CPU time of what
stands before it can be told from the engine's. The models are tiny: HTTP and serialisation weigh
more here than they ever do with a model that is of use.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

from cortex_core.ids import ModelId
from cortex_core.server.listen import open_listener
from neuron.engines import processes
from neuron.models import BUILTIN

START_S = 180.0
"""Bound on a start with its load; ten to forty seconds are usual."""

CALL_S = 120.0
"""Bound on one answer."""

TINY, EMBED = ModelId("cortex/tiny"), ModelId("cortex/tiny-embed")
SERVERS = ("vllm serve", "neuron")

NEURON = 'host = "127.0.0.1"\nport = 0\n[[harnesses]]\nname = "vllm"\n'

ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
}
"""What a neuron sets for its engines on a CPU."""

_WORDS = "The capital of France is Paris. " * 8
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a server."""

    path: str
    fields: dict[str, object]
    connections: int
    calls: int
    """One after the other on each connection."""

    def request(self, model: ModelId) -> bytes:
        """Return one request as bytes."""
        body = json.dumps({"model": model, **self.fields}).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def loads(scale: int) -> dict[ModelId, dict[str, Load]]:
    """Return all loads by model and name; `scale` 1 is the smallest that works."""
    talk = {"messages": [{"role": "user", "content": _WORDS}], "temperature": 0}
    long = {"ignore_eos": True, "max_tokens": 16 * scale}
    short = {"ignore_eos": True, "max_tokens": 8}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    many = {"connections": 8 * scale, "calls": 2 * scale}
    chat = "/v1/chat/completions"
    return {
        TINY: {
            "chat, streamed": Load(path=chat, fields={**talk, **long, **usage}, **many),
            "chat, plain": Load(path=chat, fields={**talk, **short}, **many),
            "completions": Load(
                path="/v1/completions",
                fields={"prompt": _WORDS, "temperature": 0, **short},
                **many,
            ),
            "tokenize": Load(path="/tokenize", fields={"prompt": _WORDS}, **many),
        },
        EMBED: {"embeddings": Load(path="/v1/embeddings", fields={"input": _WORDS}, **many)},
    }


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server."""

    wall_s: float
    requests: int
    tokens: int
    """That were generated; 0 where nothing is."""
    first_s: tuple[float, ...]
    """Until the first byte of the body, per request."""
    gaps_s: tuple[float, ...]
    """Between reads of streams."""
    front_s: float
    """CPU seconds of what stands before the engine core."""
    core_s: float
    """CPU seconds of the engine core."""


class Served:
    """A server that is up."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of the front and of the engine core so far."""
        front = core = 0.0
        for member in processes.family([self.pid]):
            folder = Path(f"/proc/{member.pid}")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            if b"EngineCore" in (folder / "cmdline").read_bytes():
                core += spent
            else:
                front += spent
        return front, core


@contextlib.contextmanager
def running(server: str, model: ModelId, folder: Path) -> Iterator[Served]:
    """Run a server that has `model` loaded; it and its engine are gone afterwards."""
    log = folder / "log"
    port = 0
    if server == "neuron":
        (folder / "neuron.toml").write_text(NEURON)
        command = [sys.executable, "-m", "neuron", "--config", str(folder / "neuron.toml")]
    else:
        listener = open_listener("127.0.0.1:0")
        port = listener.port
        listener.close()
        command = vllm_command(model, port)
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRON},
            start_new_session=True,
        ) as process,
    ):
        try:
            port = port or _neuron_port(process, log)
            uvloop.run(_load(process, port, server, model, log))
            yield Served(process.pid, port)
        finally:
            members = processes.family([process.pid])
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            processes.send(members, signal.SIGKILL)


def vllm_command(model: ModelId, port: int) -> list[str]:
    """Return the command line of `vllm serve` with the options of a built-in model.

    The module is what `vllm serve` runs; the command itself does not start where vLLM's
    distribution is `vllm-cpu`, for it asks for the version of `vllm`.
    """
    builtin = BUILTIN[model]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(builtin.path), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    for name, value in builtin.engine.items():
        option = f"--{name.replace('_', '-')}"
        if name == "tool_call_parser":
            command.append("--enable-auto-tool-choice")
        if value is True:
            command.append(option)
        else:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            command += [option, text]
    return command


def _neuron_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"ready: http://\S+:(\d+)", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"the neuron did not start: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _load(
    process: subprocess.Popen[bytes], port: int, server: str, model: ModelId, log: Path
) -> None:
    """Wait until the model is loaded."""
    if server == "neuron":
        wish = Load(
            path="/models/load",
            fields={"model_id": model, "harness": "vllm"},
            connections=1,
            calls=1,
        )
        async with asyncio.timeout(START_S):
            await Caller(port).one(wish.request(model))
        return
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"vllm did not start: {_end_of(log)}")


class Caller:
    """One connection, and what was seen on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.first_s: list[float] = []
        self.gaps_s: list[float] = []
        self.tokens = 0

    async def calls(self, request: bytes, count: int) -> None:
        """Make `count` calls, one after the other."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for _ in range(count):
                async with asyncio.timeout(CALL_S):
                    await self._call(reader, writer, request)
        finally:
            writer.close()

    async def one(self, request: bytes) -> None:
        """Make one call, that may take long."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await self._call(reader, writer, request)
        writer.close()

    async def _call(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> None:
        begin = last = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise RuntimeError(f"{head!r} {await reader.read(1000)!r}")
        found = _LENGTH.search(head)
        if found is not None:
            body = await reader.readexactly(int(found[1]))
            self.first_s.append(time.perf_counter() - begin)
        else:
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n"):
                data = await reader.read(1 << 16)
                now = time.perf_counter()
                if not data:
                    raise RuntimeError("the stream ended without its terminator")
                if body:
                    self.gaps_s.append(now - last)
                else:
                    self.first_s.append(now - begin)
                body, last = body + data, now
        self.tokens += max((int(count) for count in _TOKENS.findall(body)), default=0)


async def measure(served: Served, load: Load, model: ModelId) -> Run:
    """Put one load on a server."""
    request = load.request(model)
    callers = [Caller(served.port) for _ in range(load.connections)]
    front_s, core_s = served.cpu_s()
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.calls(request, load.calls))
    wall_s = time.perf_counter() - begin
    front_end_s, core_end_s = served.cpu_s()
    return Run(
        wall_s=wall_s,
        requests=load.connections * load.calls,
        tokens=sum(caller.tokens for caller in callers),
        first_s=tuple(took for caller in callers for took in caller.first_s),
        gaps_s=tuple(gap for caller in callers for gap in caller.gaps_s),
        front_s=front_end_s - front_s,
        core_s=core_end_s - core_s,
    )


async def measure_all(
    served: Served, named: dict[str, Load], model: ModelId, repeats: int
) -> list[tuple[str, Run]]:
    """Put all loads on a server, `repeats` times; once before that nobody counts."""
    for load in named.values():
        await measure(served, load, model)
    return [
        (name, await measure(served, load, model))
        for _ in range(repeats)
        for name, load in named.items()
    ]


def figures(runs: list[Run]) -> dict[str, float]:
    """Return what is shown of the runs of one load on one server: medians, ms and seconds."""
    wall_s = sum(run.wall_s for run in runs)
    requests, tokens = sum(run.requests for run in runs), sum(run.tokens for run in runs)
    per = tokens or requests
    found = {
        "requests_per_s": statistics.median(run.requests / run.wall_s for run in runs),
        "front_cpu_s_per_1000": sum(run.front_s for run in runs) / per * 1000,
        "core_cpu_s_per_1000": sum(run.core_s for run in runs) / per * 1000,
        "wall_s": wall_s,
    }
    if tokens:
        found["tokens_per_s"] = statistics.median(run.tokens / run.wall_s for run in runs)
    for name, samples in (
        ("first_ms", [took for run in runs for took in run.first_s]),
        ("gap_ms", [gap for run in runs for gap in run.gaps_s]),
    ):
        if len(samples) > 1:
            cuts = statistics.quantiles(samples, n=100)
            found |= {f"{name}_p50": cuts[49] * 1000, f"{name}_p99": cuts[98] * 1000}
    return found


def compare(
    rounds: int, repeats: int, scale: int, models: tuple[ModelId, ...] = (TINY, EMBED)
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of all loads by load and server; `ratio` is the neuron's to the other."""
    runs: dict[str, dict[str, list[Run]]] = {}
    for number in range(rounds):
        for model in models:
            named = loads(scale)[model]
            for server in SERVERS[:: -1 if number % 2 else 1]:
                with (
                    tempfile.TemporaryDirectory() as folder,
                    running(server, model, Path(folder)) as served,
                ):
                    for name, run in uvloop.run(measure_all(served, named, model, repeats)):
                        runs.setdefault(name, {}).setdefault(server, []).append(run)
    shown = {}
    for name, by_server in runs.items():
        one, two = (figures(by_server[server]) for server in SERVERS)
        ratio = {key: two[key] / one[key] for key in two if one.get(key)}
        shown[name] = dict(zip((*SERVERS, "ratio"), (one, two, ratio), strict=True))
    return shown


def main(*arguments: str) -> None:
    """Compare and print; JSON as the last line."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="loads per round and server")
    parser.add_argument("--scale", type=int, default=4, help="1 is the smallest")
    asked = parser.parse_args(arguments)
    # Servers are in sessions of their own, and are to end with this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    found = compare(asked.rounds, asked.repeats, asked.scale)
    for name, by_server in found.items():
        print(name)
        for key in by_server["neuron"]:
            row = "".join(f"{by_server[one].get(key, 0):12.3f}" for one in (*SERVERS, "ratio"))
            print(f"  {key:24}{row}")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
