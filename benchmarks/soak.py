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
from collections.abc import Iterable

import msgspec
import uvloop

from benchmarks import scrape
from benchmarks.page import with_table
from benchmarks.peers import loads
from benchmarks.peers.places import PLACES
from benchmarks.peers.running import Running, node, prepare, started

CALLERS = 32
SLICE_S = 20.0
STREAMS, CHUNKS, GAP_S = 50, 200, 0.06
CUTS_PER_S = 5.0

SETTLE_S = 2.0
"""Between a slice and the look: aborted connections are to be seen by then."""

MOST_KIB = 1000.0
"""By which resident memory may grow with 100,000 calls. That is ten bytes for each: less than the
smallest object that a call could leave behind (16 bytes)."""

FEWEST_CALLS = 100_000
"""Between the middle third and the last one, for memory to be judged: what an allocator happens to
keep is no more than the limit allows then."""

MOST_LAG = 2.5
"""Of the lag in the last third over that in the middle one. Two edges of buckets are as far apart,
and one bucket is chance."""

FEWEST_LOOKS = 6
THIRDS = ("first third", "middle third", "last third")


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
    failure: str | None = None
    """Why it ended early."""


class Third(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of a third of the looks."""

    calls: float
    rss_mib: float
    descriptors: float
    threads: float
    lag_p99_ms: float | None
    p99_ms: float | None


def thirds(looks: tuple[Look, ...]) -> list[Third]:
    """Return the thirds of a run, the first of which warms up; none of too few looks."""
    size = len(looks) // 3
    if len(looks) < FEWEST_LOOKS:
        return []
    parts = looks[:size], looks[size:-size], looks[-size:]
    return [
        Third(
            calls=statistics.median(look.calls for look in part),
            rss_mib=statistics.median(look.rss_mib for look in part),
            descriptors=statistics.median(look.descriptors for look in part),
            threads=statistics.median(look.threads for look in part),
            lag_p99_ms=_median(look.lag_p99_ms for look in part),
            p99_ms=_median(look.p99_ms for look in part),
        )
        for part in parts
    ]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def growth_kib(looks: tuple[Look, ...]) -> float | None:
    """Return by how much resident memory grew with 100,000 calls, from the middle third to the last.

    `None` for too few calls to tell.
    """
    if not (parts := thirds(looks)):
        return None
    _, middle, last = parts
    calls = last.calls - middle.calls
    if calls < FEWEST_CALLS:
        return None
    return (last.rss_mib - middle.rss_mib) * 1024 / calls * 100_000


def faults(looks: tuple[Look, ...]) -> list[str]:
    """Return what did not stay as it was, in words."""
    found = []
    grown = growth_kib(looks)
    if grown is not None and grown > MOST_KIB:
        found.append(f"memory grew by {grown:.0f} KiB with 100,000 calls")
    if parts := thirds(looks):
        _, middle, end = parts
        if end.descriptors > middle.descriptors + CALLERS:
            found.append(
                f"{end.descriptors:.0f} descriptors at the end, {middle.descriptors:.0f} before"
            )
        lags = middle.lag_p99_ms, end.lag_p99_ms
        if lags[0] is not None and lags[1] is not None and lags[1] > MOST_LAG * lags[0]:
            found.append(f"the loop's lag grew from {lags[0]:g} to {lags[1]:g} ms")
    if looks[-1].threads > looks[0].threads:
        found.append(f"threads grew from {looks[0].threads} to {looks[-1].threads}")
    if any(look.in_flight for look in looks):
        found.append("requests were in flight when none was")
    if any(look.node_streams for look in looks):
        found.append("the node went on with streams that nobody read")
    return found


def verdict(found: Soak) -> list[str]:
    """Return what is wrong with a run, in words; nothing where all stayed as it was."""
    failed = [] if found.failure is None else [f"it ended early: {found.failure}"]
    return [*failed, *(faults(found.looks) if found.looks else ["nothing was looked at"])]


def markdown(found: Soak) -> str:
    """Return a run as a page shows it."""
    wrong = verdict(found)
    grown = growth_kib(found.looks)
    memory = "too few calls to tell" if grown is None else f"{grown:+.0f} KiB with 100,000 calls"
    lines = [
        f"{found.load} ({found.date}, {found.machine}; {len(found.looks)} looks, "
        f"{found.looks[-1].calls if found.looks else 0} calls in all).",
        "",
        "| median of the | resident memory | descriptors | threads | lag p99 | call p99 |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in zip(THIRDS, thirds(found.looks), strict=False):
        lines.append(
            f"| {name} | {part.rss_mib:.1f} MiB | {part.descriptors:.0f} | {part.threads:.0f} "
            f"| {_ms(part.lag_p99_ms)} | {_ms(part.p99_ms)} |"
        )
    lines += [
        "",
        f"Memory from the middle third to the last: {memory} (at most {MOST_KIB:.0f} may be).",
        f"Verdict: {'; '.join(wrong) or 'nothing grew'}.",
    ]
    return "\n".join(lines) + "\n"


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:g} ms"


class Kept:
    """The looks of a run so far, in a file that a run which is killed leaves as well.

    Args:
        out: where they are kept, without its suffix; `None` keeps them in memory alone.
    """

    def __init__(self, out: pathlib.Path | None) -> None:
        self.soak = Soak(
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=f"{os.cpu_count()} cores, Python {platform.python_version()}",
            load="",
            looks=(),
        )
        self._out = out

    def change(self, **fields: object) -> None:
        """Keep other fields."""
        self.soak = msgspec.structs.replace(self.soak, **fields)
        if self._out is not None:
            page = msgspec.json.format(msgspec.json.encode(self.soak))
            self._out.with_suffix(".json").write_bytes(page + b"\n")
            self._out.with_suffix(".md").write_text(markdown(self.soak))

    def add(self, seen: Look) -> None:
        """Keep another look."""
        self.change(looks=(*self.soak.looks, seen))


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
    gateway: Running, behind: Running, kept: Kept, minutes: float, slice_s: float
) -> None:
    """Load a gateway with half of what it can take, for so many minutes."""
    await loads.crowd(gateway.target, CALLERS, 50)
    wall_s = await loads.crowd(gateway.target, CALLERS, 150)
    peak = CALLERS * 150 / wall_s
    # A chunk costs about a sixth of a call, and a cut stream about one.
    others = STREAMS / GAP_S / 6 + CUTS_PER_S
    rate = max(20.0, peak / 2 - others)
    load = (
        f"Half of {peak:.0f} calls a second: {rate:.0f} short calls, {STREAMS} streams of a chunk "
        f"each {1000 * GAP_S:.0f} ms, and {CUTS_PER_S:.0f} streams a second that are cut"
    )
    print(load, file=sys.stderr, flush=True)
    kept.change(load=load)
    calls, series = 0, await gateway.vitals()
    for _ in range(math.ceil(minutes * 60 / slice_s)):
        answers = await mixed_slice(gateway, rate, slice_s)
        calls += len(answers) + STREAMS + round(CUTS_PER_S * slice_s)
        seen, series = await look(gateway, behind, calls, series, answers)
        kept.add(seen)


async def many(gateway: Running, behind: Running, kept: Kept, count: int) -> None:
    """Make so many short calls, in 40 slices."""
    kept.change(
        load=f"{count} short calls of {CALLERS} callers, one in twenty on its own connection"
    )
    calls, series = 0, await gateway.vitals()
    while calls < count:
        calls += await short_slice(gateway, max(CALLERS, min(count // 40, count - calls)))
        seen, series = await look(gateway, behind, calls, series, [])
        kept.add(seen)


async def run(kept: Kept, minutes: float, requests: int, slice_s: float) -> None:
    """Start a gateway before a node, load it, and keep what is seen.

    A call that fails ends it: what was seen until then is kept.
    """
    (place,) = [one for one in PLACES if one.name == "cortex"]
    with tempfile.TemporaryDirectory() as folder, node() as behind:
        async with started(place, pathlib.Path(folder), behind.target.port) as gateway:
            try:
                if requests:
                    await many(gateway, behind, kept, requests)
                else:
                    await soak(gateway, behind, kept, minutes, slice_s)
            except* (OSError, RuntimeError, TimeoutError) as errors:
                kept.change(failure=str(errors.exceptions[0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=0, help="short calls instead of minutes")
    parser.add_argument("--slice", type=float, default=SLICE_S, help="seconds between two looks")
    parser.add_argument("--out", type=pathlib.Path, help="where PATH.md and PATH.json are kept")
    parser.add_argument("--page", type=pathlib.Path, help="a page into which the table is put")
    asked = parser.parse_args()
    prepare()
    kept = Kept(asked.out)
    uvloop.run(run(kept, asked.minutes, asked.requests, asked.slice))
    print(markdown(kept.soak))
    if asked.page is not None:
        name = "soak of calls" if asked.requests else "soak of minutes"
        asked.page.write_text(with_table(asked.page.read_text(), name, markdown(kept.soak)))
    return 1 if verdict(kept.soak) else 0


if __name__ == "__main__":
    sys.exit(main())
