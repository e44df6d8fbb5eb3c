"""The engine behind a neuron and behind `vllm serve`: `python -m benchmarks.engine [ROUNDS]`.

Both serve the built-in models with the same weights, options and environment. In each round
they are started anew and side by side, and get the same loads in turns: while one has a load,
the other is idle. The engine core is a process of its own in both, so that the CPU time of what
stands before it can be told from the engine's. The models are tiny: HTTP and serialisation weigh
more here than they ever do with a model that is of use.
"""

import argparse
import datetime
import os
import pathlib
import platform
import signal
import statistics
import sys
import time
from collections.abc import Mapping

import msgspec
import uvloop

from benchmarks.engine_loads import EMBED, TINY, Load, Run, loads, measure
from benchmarks.engine_servers import SERVERS, Served, running
from benchmarks.page import with_table
from benchmarks.peers.running import others_cpu_s
from cortex_core.ids import ModelId
from neuron.engines.vllm_environment import installed_version

Runs = dict[str, dict[str, list[Run]]]
"""By load and server; those of the same place in both lists were one after the other."""

Figures = dict[str, float]

SAYS = {
    "requests_per_s": "requests/s",
    "first_ms_p50": "first byte p50, ms",
    "first_ms_p99": "first byte p99, ms",
    "gap_ms_p50": "gap p50, ms",
    "gap_ms_p99": "gap p99, ms",
    "front_ms": "front, CPU ms/request",
    "core_ms": "engine core, CPU ms/request",
}
"""Columns of the table."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the program."""

    date: str
    machine: str
    engine: str
    rounds: int
    repeats: int
    scale: int
    took_s: float
    others_cores: float
    """How many cores other programs of the machine kept busy meanwhile."""
    loads: Mapping[str, Mapping[str, Figures]]
    """By load and server, and how the neuron's compare as `ratio`."""
    ratios: Mapping[str, tuple[float, ...]]
    """Requests per second of the neuron by those of `vllm serve`, for each turn of a load."""


async def turns(served: list[Served], named: dict[str, Load], model: ModelId, repeats: int) -> Runs:
    """Put all loads on all servers in turns, `repeats` times; once before that nobody counts."""
    runs: Runs = {name: {one.name: [] for one in served} for name in named}
    for number in range(-1, repeats):
        for name, load in named.items():
            for one in served[:: -1 if number % 2 else 1]:
                run = await measure(one.port, load, model, one.cpu_s)
                if number >= 0:
                    runs[name][one.name].append(run)
    return runs


def measured(
    rounds: int, repeats: int, scale: int, models: tuple[ModelId, ...]
) -> tuple[Runs, float]:
    """Start, load and end everything `rounds` times.

    Returns:
        The runs, and how many cores other programs kept busy during them.
    """
    runs: Runs = {}
    loaded_s = others_s = 0.0
    for number in range(rounds):
        for model in models:
            named = loads(scale)[model]
            # Whoever is first in one round is second in the next.
            with running(model, SERVERS[:: -1 if number % 2 else 1]) as served:
                # Only here: of a process that has ended nobody knows whose it was.
                begin_s, others_begin_s = time.monotonic(), others_cpu_s()
                found = uvloop.run(turns(served, named, model, repeats))
                others_s += others_cpu_s() - others_begin_s
                loaded_s += time.monotonic() - begin_s
            for name, by_server in found.items():
                for server, more in by_server.items():
                    runs.setdefault(name, {}).setdefault(server, []).extend(more)
    return runs, max(0.0, others_s) / loaded_s


def figures(runs: list[Run]) -> Figures:
    """Return what is shown of the runs of one load on one server."""
    requests, tokens = sum(run.requests for run in runs), sum(run.tokens for run in runs)
    found = {
        "requests_per_s": statistics.median(run.requests / run.wall_s for run in runs),
        "front_ms": sum(run.front_s for run in runs) / requests * 1000,
        "core_ms": sum(run.core_s for run in runs) / requests * 1000,
        "requests": requests,
        "tokens": tokens,
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


def ratios(by_server: Mapping[str, list[Run]]) -> tuple[float, ...]:
    """Return the neuron's requests per second by those of the other, for each turn of a load."""
    other, ours = (by_server[server] for server in SERVERS)
    return tuple(
        (mine.requests / mine.wall_s) / (theirs.requests / theirs.wall_s)
        for theirs, mine in zip(other, ours, strict=True)
    )


def compare(
    rounds: int, repeats: int, scale: int, models: tuple[ModelId, ...] = (TINY, EMBED)
) -> Comparison:
    """Measure and compare."""
    begin = time.monotonic()
    runs, others_cores = measured(rounds, repeats, scale, models)
    took_s = time.monotonic() - begin
    shown, by_turn = {}, {}
    for name, by_server in runs.items():
        one, two = (figures(by_server[server]) for server in SERVERS)
        by_turn[name] = ratios(by_server)
        ratio = {key: two[key] / one[key] for key in two if one.get(key)}
        # Of neighbours, whatever the machine did between the rounds.
        ratio["requests_per_s"] = statistics.median(by_turn[name])
        shown[name] = dict(zip((*SERVERS, "ratio"), (one, two, ratio), strict=True))
    version = installed_version()
    return Comparison(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{os.cpu_count()} cores, no GPU, Python {platform.python_version()}",
        engine="none" if version is None else f"{version.name} {version.version}",
        rounds=rounds,
        repeats=repeats,
        scale=scale,
        took_s=round(took_s, 1),
        others_cores=round(others_cores, 2),
        loads=shown,
        ratios=by_turn,
    )


def markdown(found: Comparison) -> str:
    """Return a run as a page shows it."""
    lines = [
        f"{found.date}, {found.machine}, {found.engine}; {found.rounds} rounds of "
        f"{found.repeats} turns of each load, {8 * found.scale} callers at once, in "
        f"{found.took_s / 60:.1f} minutes. "
        f"Other programs kept {found.others_cores:.2f} cores busy under the loads.",
        "",
        "| load | neuron by `vllm serve`: throughput | least and most of a turn "
        "| CPU time of front and core |",
        "|---|---|---|---|",
    ]
    for name, each in found.ratios.items():
        ratio = found.loads[name]["ratio"]["requests_per_s"]
        one, two = (_cpu_ms(found.loads[name][server]) for server in SERVERS)
        lines.append(
            f"| {name} | **{ratio:.2f}** | {min(each):.2f} to {max(each):.2f} | {two / one:.2f} |"
        )
    lines += [
        "",
        f"| load | server | {' | '.join(SAYS.values())} |",
        f"|---|---{'|---' * len(SAYS)}|",
    ]
    for name, by_server in found.loads.items():
        for server in (*SERVERS, "ratio"):
            cells = [_cell(by_server[server].get(key)) for key in SAYS]
            lines.append(f"| {name} | {server} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cpu_ms(shown: Figures) -> float:
    return shown["front_ms"] + shown["core_ms"]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def main(*arguments: str) -> None:
    """Compare, print, and keep what is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="turns of a load per round")
    parser.add_argument("--scale", type=int, default=4, help="1 is the smallest")
    parser.add_argument("--out", type=pathlib.Path, help="where PATH.md and PATH.json are kept")
    parser.add_argument("--page", type=pathlib.Path, help="a page into which the table is put")
    asked = parser.parse_args(arguments)
    # Servers are in sessions of their own, and are to end with this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    found = compare(asked.rounds, asked.repeats, asked.scale)
    print(markdown(found))
    if asked.out is not None:
        asked.out.with_suffix(".md").write_text(markdown(found))
        kept = msgspec.json.format(msgspec.json.encode(found))
        asked.out.with_suffix(".json").write_bytes(kept + b"\n")
    if asked.page is not None:
        asked.page.write_text(with_table(asked.page.read_text(), "engine", markdown(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
