"""`python -m benchmarks.soak`: whether a gateway stays as it is under hours of load.

Either minutes of mixed load at half of what it can take, or a number of short calls. After every
slice of the load, when nothing runs, it is looked at what the process holds; what grows from
slice to slice would grow for ever.
"""

import argparse
import asyncio
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import tempfile

import msgspec
import uvloop

from benchmarks import scrape
from benchmarks.peers import loads
from benchmarks.peers.places import PLACES
from benchmarks.peers.running import Running, node, prepare, started

CALLERS = 32
SLICE_S = 20.0
STREAMS, CHUNKS, GAP_S = 50, 200, 0.06
CUTS_PER_S = 5.0

SETTLE_S = 2.0
"""Between a slice and the look: aborted connections are to be seen by then."""

MOST_GROWTH = 1.02
"""Of resident memory in the second half of the looks over that in the quarter before."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen after a slice."""

    calls: int
    """Ended so far, streams and cut ones included."""
    rss_mib: float
    descriptors: int
    threads: int
    in_flight: float
    """Requests that the gateway believes to be running."""
    node_streams: int
    """Streams that the node still writes: those whose callers left must have ended there too."""
    lag_p99_ms: float | None
    """Of the event loop, within the slice; the upper edge of a bucket."""
    p99_ms: float | None
    """From when a call was due to its end."""


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    date: str
    machine: str
    load: str
    looks: tuple[Look, ...]


def growth(looks: tuple[Look, ...]) -> float | None:
    """Return resident memory of the second half of the looks over that of the second quarter.

    The first quarter warms up; `None` for too few looks to tell.
    """
    if len(looks) < 8:
        return None
    quarter, half = len(looks) // 4, len(looks) // 2
    before = statistics.median(look.rss_mib for look in looks[quarter:half])
    return statistics.median(look.rss_mib for look in looks[half:]) / before


def faults(looks: tuple[Look, ...]) -> list[str]:
    """Return what did not stay as it was, in words."""
    found = []
    grown = growth(looks)
    if grown is not None and grown > MOST_GROWTH:
        found.append(f"memory grew to {grown:.3f} of itself")
    last = looks[-1]
    descriptors = statistics.median(look.descriptors for look in looks)
    if last.descriptors > descriptors + CALLERS:
        found.append(f"{last.descriptors} descriptors at the end, {descriptors:.0f} in between")
    if last.threads > looks[0].threads:
        found.append(f"threads grew from {looks[0].threads} to {last.threads}")
    if any(look.in_flight for look in looks):
        found.append("requests were in flight when none was")
    if any(look.node_streams for look in looks):
        found.append("the node went on with streams that nobody read")
    return found


async def mixed_slice(gateway: Running, rate_per_s: float, seconds: float) -> list[loads.Answer]:
    """Put short calls, streams, and streams that are cut on a gateway at once."""
    target, chunks = gateway.target, round(CHUNKS * seconds / SLICE_S)
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(
            loads.open_loop(target, rate_per_s, round(rate_per_s * seconds), loads.request(target))
        )
        tasks.create_task(loads.streams(target, STREAMS, chunks, GAP_S, spread_s=seconds / 10))
        cuts = round(CUTS_PER_S * seconds)
        tasks.create_task(loads.storm(target, cuts, CUTS_PER_S, seed=cuts))
    return calls.result()


async def short_slice(gateway: Running, calls: int) -> int:
    """Make short calls, one in twenty on a connection of its own; return how many."""
    alone = calls // 20 // CALLERS
    together = (calls - alone * CALLERS) // CALLERS

    async def one() -> None:
        for _ in range(alone):
            await loads.sequential(gateway.target, 1)
        await loads.sequential(gateway.target, together)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(one())
    return (alone + together) * CALLERS


async def look(
    gateway: Running,
    behind: Running,
    calls: int,
    before: scrape.Series,
    answers: list[loads.Answer],
) -> tuple[Look, scrape.Series]:
    """Return what the gateway holds, and its series."""
    await asyncio.sleep(SETTLE_S)
    after = await gateway.vitals()
    folder = pathlib.Path(f"/proc/{gateway.process.pid}")
    took = sorted(answer.end_at - answer.begin_at for answer in answers)
    lag_s = scrape.lag_quantile_s(before, after, 0.99)
    seen = Look(
        calls=calls,
        rss_mib=round(gateway.rss_bytes() / (1 << 20), 2),
        descriptors=len(os.listdir(folder / "fd")),
        threads=len(os.listdir(folder / "task")),
        in_flight=sum(v for k, v in after.items() if k.startswith("cortex_requests_in_flight")),
        node_streams=json.loads(await scrape.page(behind.target.port, "/bench"))["streams"],
        lag_p99_ms=None if lag_s is None else round(1000 * lag_s, 3),
        p99_ms=round(1000 * took[len(took) * 99 // 100], 2) if took else None,
    )
    print(msgspec.json.encode(seen).decode(), file=sys.stderr, flush=True)
    return seen, after


async def soak(
    gateway: Running, behind: Running, minutes: float, slice_s: float
) -> tuple[str, tuple[Look, ...]]:
    """Load a gateway with half of what it can take, for so many minutes."""
    await loads.crowd(gateway.target, CALLERS, 50)
    wall_s = await loads.crowd(gateway.target, CALLERS, 150)
    peak = CALLERS * 150 / wall_s
    # A chunk costs about a sixth of a call, and a cut stream about one.
    others = STREAMS / GAP_S / 6 + CUTS_PER_S
    rate = max(20.0, peak / 2 - others)
    load = (
        f"half of {peak:.0f} calls a second: {rate:.0f} short calls, {STREAMS} streams of a chunk "
        f"each {1000 * GAP_S:.0f} ms, and {CUTS_PER_S:.0f} streams a second that are cut"
    )
    print(load, file=sys.stderr, flush=True)
    looks: list[Look] = []
    calls, series = 0, await gateway.vitals()
    for _ in range(math.ceil(minutes * 60 / slice_s)):
        answers = await mixed_slice(gateway, rate, slice_s)
        calls += len(answers) + STREAMS + round(CUTS_PER_S * slice_s)
        seen, series = await look(gateway, behind, calls, series, answers)
        looks.append(seen)
    return load, tuple(looks)


async def many(gateway: Running, behind: Running, count: int) -> tuple[str, tuple[Look, ...]]:
    """Make so many short calls, in 40 slices."""
    looks: list[Look] = []
    calls, series = 0, await gateway.vitals()
    while calls < count:
        calls += await short_slice(gateway, max(CALLERS, min(count // 40, count - calls)))
        seen, series = await look(gateway, behind, calls, series, [])
        looks.append(seen)
    return f"{count} short calls of {CALLERS} callers, one in twenty on its own connection", tuple(
        looks
    )


async def run(minutes: float, requests: int, slice_s: float) -> Soak:
    """Start a gateway before a node, load it, and return what was seen."""
    (place,) = [one for one in PLACES if one.name == "cortex"]
    with tempfile.TemporaryDirectory() as folder, node() as behind:
        async with started(place, pathlib.Path(folder), behind.target.port) as gateway:
            if requests:
                load, looks = await many(gateway, behind, requests)
            else:
                load, looks = await soak(gateway, behind, minutes, slice_s)
    return Soak(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{os.cpu_count()} cores, Python {platform.python_version()}",
        load=load,
        looks=looks,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=0, help="short calls instead of minutes")
    parser.add_argument("--slice", type=float, default=SLICE_S, help="seconds between two looks")
    parser.add_argument("--out", type=pathlib.Path, help="where the looks are kept, as JSON")
    asked = parser.parse_args()
    prepare()
    found = uvloop.run(run(asked.minutes, asked.requests, asked.slice))
    if asked.out is not None:
        asked.out.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    wrong = faults(found.looks)
    print(f"{found.load}; {found.looks[-1].calls} in all: {'; '.join(wrong) or 'nothing grew'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
