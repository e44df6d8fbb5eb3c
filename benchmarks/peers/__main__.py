"""`python -m benchmarks.peers`: this gateway beside others, before the same node.

Each is installed into a folder of its own the first time; what cannot be is left out with the
reason. Rounds are interleaved, so that other work on the machine hits all; the numbers that mean
most are ratios of one run.
"""

import argparse
import asyncio
import datetime
import gc
import os
import pathlib
import platform
import sys
from collections.abc import Iterator

import msgspec
import uvloop

from benchmarks.peers import loads, plot, scenarios
from benchmarks.peers.places import PLACES, Place
from benchmarks.peers.report import DIRECT, OURS, Report, Round, medians, page
from benchmarks.peers.running import Running, node, others_cpu_s, prepare, started
from benchmarks.peers.scenarios import SCENARIOS, Bench, titles_of
from benchmarks.peers.sizes import QUICK, SLOW, Sizes

SCENARIO_S = 90.0
"""After so long a gateway is given up in a scenario."""

TAKES_MOST = ("nginx", "smg", OURS)
"""Of whom the most streams are asked, which takes long."""


def install(
    names: list[str], folder: pathlib.Path
) -> tuple[list[Place], dict[str, str], dict[str, str]]:
    """Return the gateways that can be measured, their versions, and why others cannot."""
    found, versions, left_out = [], {}, {}
    for place in PLACES:
        if names and place.name not in names:
            continue
        print(f"{place.name} ...", file=sys.stderr)
        try:
            versions[place.name] = place.version(folder / place.name)
            found.append(place)
        except LookupError as error:
            left_out[place.name] = str(error)
    return found, versions, left_out


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what a group of errors is about in the end."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves(one)
    else:
        yield error


def why(error: BaseException) -> str:
    """Return what went wrong, each reason once."""
    said = dict.fromkeys(str(one) or type(one).__name__ for one in leaves(error))
    return "; ".join(said)[:200]


async def measured(name: str, bench: Bench) -> Round:
    """Put every load on a gateway."""
    numbers: scenarios.Numbers = {}
    failed: dict[str, str] = {}
    begin, before_s = loads.clock(), others_cpu_s()
    for scenario, run in SCENARIOS.items():
        # Not in the midst of a load, which it would look like a slow gateway in.
        gc.collect()
        try:
            async with asyncio.timeout(SCENARIO_S):
                numbers |= await run(bench)
        except* (OSError, RuntimeError) as group:
            failed[scenario] = why(group)
            print(f"{name}, {scenario}: {failed[scenario]}", file=sys.stderr)
    took_s = loads.clock() - begin
    numbers["others_cores"] = (others_cpu_s() - before_s) / took_s
    print(f"{name}: {took_s:.0f} s", file=sys.stderr)
    return Round(name=name, numbers=numbers, failed=failed)


def sizes_for(name: str, *, is_slow: bool, is_quick: bool) -> Sizes:
    """Return how much is measured of a gateway."""
    sizes = QUICK if is_quick else SLOW if is_slow else Sizes()
    return sizes if name in TAKES_MOST else msgspec.structs.replace(sizes, most=0)


async def one_round(
    places: list[Place], folder: pathlib.Path, direct: Running, *, is_quick: bool
) -> tuple[list[Round], dict[str, str]]:
    """Measure all; return what they came to, and why some did not start."""
    found: list[Round] = []
    failed: dict[str, str] = {}
    for place in places:
        sizes = sizes_for(place.name, is_slow=place.is_slow, is_quick=is_quick)
        try:
            async with started(place, folder / place.name, direct.target.port) as gateway:
                bench = Bench(gateway=gateway, node=direct.target, sizes=sizes)
                found.append(await measured(place.name, bench))
        except* (OSError, RuntimeError) as group:
            failed[place.name] = why(group)
            print(f"{place.name}: {failed[place.name]}", file=sys.stderr)
    return found, failed


async def run(
    places: list[Place], folder: pathlib.Path, direct: Running, count: int, *, is_quick: bool
) -> tuple[list[Round], dict[str, str]]:
    """Measure all, round after round, every other one backwards."""
    rounds: list[Round] = []
    failed: dict[str, str] = {}
    for number in range(count):
        print(f"round {number + 1} of {count}", file=sys.stderr)
        sizes = sizes_for(DIRECT, is_slow=False, is_quick=is_quick)
        rounds.append(
            await measured(DIRECT, Bench(gateway=direct, node=direct.target, sizes=sizes))
        )
        order = places if number % 2 == 0 else places[::-1]
        found, missing = await one_round(order, folder, direct, is_quick=is_quick)
        rounds += found
        failed |= missing
    return rounds, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="gateways; without any, all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(".bench"))
    parser.add_argument("--out", type=pathlib.Path, help="where to write NAME.md, .json and .svg")
    parser.add_argument("--quick", action="store_true", help="little of everything, to try it")
    asked = parser.parse_args()
    prepare()
    gc.disable()
    folder = asked.folder.resolve()
    places, versions, left_out = install(asked.names, folder)
    with node() as direct:
        rounds, failed = uvloop.run(run(places, folder, direct, asked.rounds, is_quick=asked.quick))
    report = Report(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{os.cpu_count()} cores of {machine()}, Python {platform.python_version()}",
        command=" ".join(("nox -s bench -- peers", *asked.names, f"--rounds {asked.rounds}")),
        versions=versions,
        left_out={**left_out, **failed},
        titles=titles_of(QUICK if asked.quick else Sizes()),
        rounds=tuple(rounds),
    )
    print(page(report))
    if asked.out is not None:
        write(asked.out, report)
    if OURS in failed or any(one.failed for one in rounds if one.name == OURS):
        sys.exit(f"{OURS} failed")


def write(out: pathlib.Path, report: Report) -> None:
    """Write page, data and picture; `out` is their name without an ending."""
    picture = out.with_suffix(".svg")
    out.with_suffix(".md").write_text(page(report, picture.name))
    picture.write_text(plot.svg(medians(report), report.titles))
    data = msgspec.json.format(msgspec.json.encode(report), indent=1)
    out.with_suffix(".json").write_bytes(data + b"\n")


def machine() -> str:
    """Return the name of the processor, as Linux has it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
