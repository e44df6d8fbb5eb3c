"""`python -m benchmarks.peers`: this gateway beside others, before the same node.

Each is installed into a folder of its own the first time; what cannot be is left out with the
reason. Rounds are interleaved, so that other work on the machine hits all; the numbers that mean
most are ratios of one run.
"""

import argparse
import asyncio
import contextlib
import datetime
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import uvloop

from benchmarks.peers import loads
from benchmarks.peers.places import PLACES, Place
from benchmarks.peers.report import Report, page
from benchmarks.peers.rounds import OTHER_CORE, Round, Sizes, measure, started
from benchmarks.upstream import run_upstream
from cortex_core.server.listen import open_listener

ROUND_S = 180.0


@contextlib.contextmanager
def node() -> Iterator[int]:
    """Run the node in a process of its own and yield its port."""
    listener = open_listener("127.0.0.1:0")
    fd = listener.socket.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers", "--be-node", str(fd)], pass_fds=(fd,)
    )
    listener.close()
    try:
        yield listener.port
    finally:
        process.terminate()
        process.wait(10)


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


async def tried(place: Place, folder: pathlib.Path, port: int, sizes: Sizes) -> Round | str:
    """Return what a gateway came to, or why it did not."""
    why = "it does not start"
    try:
        async with (
            asyncio.timeout(ROUND_S),
            started(place, folder / place.name, port) as gateway,
        ):
            return await measure(place.name, gateway, loads.Target(port=port), sizes)
    except* TimeoutError:
        why = f"a round takes more than {ROUND_S:.0f} s"
    except* (OSError, RuntimeError, asyncio.IncompleteReadError) as group:
        why = str(group.exceptions[0])[:200]
    return why


async def run(
    places: list[Place], folder: pathlib.Path, port: int, count: int, sizes: Sizes
) -> tuple[list[Round], dict[str, str]]:
    """Measure all, round after round, every other one backwards."""
    rounds: list[Round] = []
    failed: dict[str, str] = {}
    for number in range(count):
        for place in places if number % 2 == 0 else reversed(places):
            if place.name in failed:
                continue
            found = await tried(place, folder, port, sizes)
            if isinstance(found, str):
                # Once more: somebody else may have taken one of its ports.
                found = await tried(place, folder, port, sizes)
            if isinstance(found, str):
                failed[place.name] = found
                print(f"{place.name}: {found}", file=sys.stderr)
                continue
            rounds.append(found)
            print(f"round {number + 1}: {found}", file=sys.stderr)
    return [one for one in rounds if one.name not in failed], failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="gateways; without any, all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(".bench"))
    parser.add_argument("--out", type=pathlib.Path, help="where to write NAME.md and NAME.json")
    parser.add_argument("--quick", action="store_true", help="little of everything, to try it")
    parser.add_argument("--be-node", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {int(OTHER_CORE)})
    if asked.be_node is not None:
        uvloop.run(run_upstream(asked.be_node))
        return
    folder = asked.folder.resolve()
    places, versions, left_out = install(asked.names, folder)
    sizes = Sizes(turns=2, calls=20, crowd_calls=5, chunks=20, due_calls=50, open_streams=20)
    with node() as port:
        rounds, failed = uvloop.run(
            run(places, folder, port, asked.rounds, sizes if asked.quick else Sizes())
        )
    report = Report(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        versions={name: text for name, text in versions.items() if name not in failed},
        left_out={**left_out, **failed},
        rounds=tuple(rounds),
    )
    print(page(report))
    if asked.out is not None:
        asked.out.with_suffix(".md").write_text(page(report))
        asked.out.with_suffix(".json").write_bytes(
            msgspec.json.format(msgspec.json.encode(report), indent=1)
        )


if __name__ == "__main__":
    main()
