"""Where the gateway spends its time on one request: `python -m benchmarks.stages`.

Two gateways stand before the same node, one with clocks around its seams (`benchmarks.probes`)
and one without, and get the same loads in turns. What the clocks cost is taken off, and what is
left is compared with the other's CPU time: that is the error of the table.
"""

import argparse
import asyncio
import contextlib
import datetime
import os
import pathlib
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import msgspec
import uvloop

from benchmarks import probes
from benchmarks.page import with_table
from benchmarks.peers import loads
from benchmarks.peers.places import PLACES
from benchmarks.peers.running import Running, node, others_cpu_s, prepare, started

CALLERS = 8
STREAMS, FEW, MANY, GAP_S = 32, 4, 104, 0.01
"""Streams at once; what one costs beside its chunks is known from short ones, and what a chunk
costs from the difference to longer ones."""

TOLD_S = 10.0
LOOK_S = 0.005

SAYS = {
    "accept": "a connection is taken from Hypercorn",
    "parse": "the request's bytes become a head and a body, and the connection's task goes on",
    "guard": "limits, the request's id, the drain, the way to the endpoint",
    "read": "headers and body are read in their dialect; what will be sent is made",
    "walk": "the steps between: account, counters, the attempt, headers for the node",
    "route": "the name, the line for the model, the choice of a replica",
    "send": "a connection from the pool, the head for the node, the write",
    "node": "what the node sends is read: head, length or chunks",
    "relay": "what is passed on and how",
    "watch": "tokens, the end and errors are found in what passes",
    "answer": "head and pieces for the caller, the write, the turn of the connection",
    "log": "the line about the request",
    "series": "counters and histograms",
    "close": "a connection is let go of",
    "loop": "the event loop, and the kernel: sockets are polled, read and written",
    "threads": "other threads: log lines are written, the loop is watched",
}

TOP = 5


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    date: str
    machine: str
    calls: int
    rounds: int
    columns: Mapping[str, Mapping[str, float]]
    """CPU microseconds by column and row."""
    totals: Mapping[str, float]
    """CPU microseconds of the gateway without clocks by column."""
    others_cores: float
    """How many cores other programs of the machine kept busy meanwhile."""
    probe_ns: probes.Cost
    """What was taken off for each passage through a clock."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway with clocks says of itself."""

    passed: probes.Passed
    own_cost_ns: probes.Cost


Spent = dict[str, float]
"""CPU seconds by row; `total` alone of a gateway without clocks."""

Load = Callable[[loads.Target], Awaitable[int]]
"""Puts a load on a target and returns how many requests that was."""


def play(config: str, told: str) -> int:
    """Be the gateway with clocks, which writes what it has counted when it is asked to."""
    cost = probes.own_cost()
    watch = probes.install()

    def tell(*_: object) -> None:
        path = pathlib.Path(told)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(Told(passed=watch.passed(), own_cost_ns=cost)))
        fresh.rename(path)

    signal.signal(signal.SIGUSR1, tell)
    # After the seams are wrapped, so that whoever imports them gets the wrapped ones.
    from cortex_gateway.__main__ import main as gateway

    return gateway(["--config", config])


class Probed:
    """A gateway that may have clocks."""

    def __init__(self, running: Running, told: pathlib.Path | None) -> None:
        self.running = running
        self._told = told

    async def ask(self) -> tuple[float, Told | None]:
        """Return its CPU seconds so far, and what it says of itself."""
        said = None
        if self._told is not None:
            self._told.unlink(missing_ok=True)
            self.running.process.send_signal(signal.SIGUSR1)
            said = await self._read(self._told)
        return self.running.cpu_s(), said

    async def _read(self, path: pathlib.Path) -> Told:
        for _ in range(round(TOLD_S / LOOK_S)):
            if (said := told_at(path)) is not None:
                return said
            await asyncio.sleep(LOOK_S)
        raise TimeoutError("the gateway with clocks does not say what it has counted")

    async def spent(self, load: Load) -> tuple[int, Spent]:
        """Return the requests of a load and what they took."""
        cpu_s, before = await self.ask()
        count = await load(self.running.target)
        # A connection that is closed is let go of a moment later.
        await asyncio.sleep(0.05)
        end_s, after = await self.ask()
        if before is None or after is None:
            return count, {"total": end_s - cpu_s}
        return count, by_row(before, after, end_s - cpu_s)


def told_at(path: pathlib.Path) -> Told | None:
    """Return what a gateway has written; `None` before it has."""
    return msgspec.json.decode(path.read_bytes(), type=Told) if path.exists() else None


def by_row(before: Told, after: Told, cpu_s: float) -> Spent:
    """Return CPU seconds by row between two tellings, without what the clocks took."""
    old, new = before.passed, after.passed
    cost = after.own_cost_ns
    spent = {}
    clocks_ns = 0.0
    for stage, name in enumerate(probes.STAGES):
        entered = new.entered[stage] - old.entered[stage]
        left = new.left[stage] - old.left[stage]
        cost_ns = entered * cost.inside + left * cost.around
        clocks_ns += cost_ns
        if stage != probes.OUTSIDE:
            took_ns = new.spent_ns[stage] - old.spent_ns[stage]
            spent[name] = (took_ns - cost_ns) / 1e9
    thread_s = (new.thread_ns - old.thread_ns) / 1e9
    spent["loop"] = thread_s - clocks_ns / 1e9 - sum(spent.values())
    spent["threads"] = cpu_s - thread_s
    return spent


def loads_of(calls: int) -> dict[str, Load]:
    """Return the loads by what they are called."""
    per_caller = max(1, calls // CALLERS)

    async def kept(target: loads.Target) -> int:
        await loads.crowd(target, CALLERS, per_caller)
        return CALLERS * per_caller

    async def fresh(target: loads.Target) -> int:
        async def one() -> None:
            for _ in range(per_caller):
                await loads.sequential(target, 1)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(one())
        return CALLERS * per_caller

    def streamed(chunks: int, batches: int) -> Load:
        async def load(target: loads.Target) -> int:
            for _ in range(batches):
                await loads.streams(target, STREAMS, chunks, GAP_S, spread_s=FEW * GAP_S)
            return STREAMS * batches

        return load

    return {
        "kept": kept,
        "fresh": fresh,
        "few": streamed(FEW, max(1, calls // 100)),
        "many": streamed(MANY, max(1, calls // 400)),
    }


def columns_of(each: Mapping[str, Spent]) -> dict[str, Spent]:
    """Return the table's columns from the microseconds of one request of each load."""
    rows = each["kept"].keys()
    chunk = {row: (each["many"][row] - each["few"][row]) / (MANY - FEW) for row in rows}
    return {
        "call": each["kept"],
        "call, new connection": each["fresh"],
        "stream": {row: each["few"][row] - FEW * chunk[row] for row in rows},
        "chunk": chunk,
    }


@contextlib.asynccontextmanager
async def gateways(folder: pathlib.Path, port: int) -> AsyncIterator[tuple[Probed, Probed]]:
    """Start a gateway with clocks and one without before the node on a port."""
    (plain,) = [one for one in PLACES if one.name == "cortex"]
    told = folder / "told"

    def command(inner: pathlib.Path, own_port: int, node_port: int) -> list[str]:
        config = plain.command(inner, own_port, node_port)[-1]
        return [sys.executable, "-m", "benchmarks.stages", "--play", config, str(told)]

    clocked = msgspec.structs.replace(plain, command=command)
    (folder / "with").mkdir()
    (folder / "without").mkdir()
    async with (
        started(clocked, folder / "with", port) as one,
        started(plain, folder / "without", port) as other,
    ):
        yield Probed(one, told), Probed(other, None)


async def run(calls: int, rounds: int) -> Table:
    """Measure."""
    named = loads_of(calls)
    samples: dict[tuple[bool, str], list[Spent]] = {}
    begin, others_s = time.monotonic(), others_cpu_s()
    with tempfile.TemporaryDirectory() as folder, node() as behind:
        async with gateways(pathlib.Path(folder), behind.target.port) as pair:
            for number in range(-1, rounds):
                for name, load in named.items():
                    for which in pair[:: -1 if number % 2 else 1]:
                        count, spent = await which.spent(load)
                        each = {row: 1e6 * took_s / count for row, took_s in spent.items()}
                        # The first round warms up.
                        if number >= 0:
                            samples.setdefault((which is pair[0], name), []).append(each)
            _, said = await pair[0].ask()
            others_s = others_cpu_s() - others_s
    assert said is not None
    clocked, plain = (
        columns_of({name: medians(samples[has_clocks, name]) for name in named})
        for has_clocks in (True, False)
    )
    return Table(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{os.cpu_count()} cores, Python {platform.python_version()}",
        calls=calls,
        rounds=rounds,
        others_cores=round(max(0.0, others_s) / (time.monotonic() - begin), 2),
        columns={
            name: {row: round(spent[row], 2) for row in SAYS} for name, spent in clocked.items()
        },
        totals={name: round(spent["total"], 2) for name, spent in plain.items()},
        probe_ns=said.own_cost_ns,
    )


def medians(samples: list[Spent]) -> Spent:
    """Return the median of each row."""
    return {row: statistics.median(one[row] for one in samples) for row in samples[0]}


def markdown(table: Table) -> str:
    """Return a run as a page shows it; the largest of each column are bold."""
    lines = [
        f"CPU microseconds and shares; {table.date}, {table.machine}, medians of {table.rounds} "
        f"rounds of {table.calls} calls; the five largest of each column are bold. "
        f"Other programs kept {table.others_cores:.2f} cores busy meanwhile.",
        "",
        f"| stage | {' | '.join(table.columns)} | what is done |",
        f"|---|{'---|' * len(table.columns)}---|",
    ]
    sums = {name: sum(rows.values()) for name, rows in table.columns.items()}
    top = {
        name: sorted(rows, key=rows.__getitem__, reverse=True)[:TOP]
        for name, rows in table.columns.items()
    }
    for row, says in SAYS.items():
        cells = []
        for name, rows in table.columns.items():
            mark = "**" if row in top[name] else ""
            share = rows[row] / sums[name] if sums[name] else 0.0
            # No sign before a nothing.
            cells.append(f"{mark}{rows[row]:z.1f}{mark} ({share:z.0%})")
        lines.append(f"| {row} | {' | '.join(cells)} | {says} |")
    lines.append(f"| sum | {' | '.join(f'{taken:.1f}' for taken in sums.values())} | |")
    totals = table.totals.values()
    lines.append(f"| without clocks | {' | '.join(f'{taken:.1f}' for taken in totals)} | |")
    errors = (sums[name] / table.totals[name] - 1 for name in table.columns)
    lines.append(f"| error | {' | '.join(f'{error:+.1%}' for error in errors)} | |")
    cost = table.probe_ns
    lines += [
        "",
        f"A passage through a clock takes {cost.inside + cost.around:.0f} ns, taken off above.",
    ]
    return "\n".join(lines) + "\n"


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.stages", description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="where PATH.md and PATH.json are kept")
    parser.add_argument("--page", type=pathlib.Path, help="a page into which the table is put")
    parser.add_argument("--play", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.play:
        return play(*asked.play)
    prepare()
    table = uvloop.run(run(asked.calls, asked.rounds))
    print(markdown(table))
    if asked.out is not None:
        asked.out.with_suffix(".md").write_text(markdown(table))
        page = msgspec.json.format(msgspec.json.encode(table))
        asked.out.with_suffix(".json").write_bytes(page + b"\n")
    if asked.page is not None:
        asked.page.write_text(with_table(asked.page.read_text(), "stages", markdown(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
