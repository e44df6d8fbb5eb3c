"""The loads that every gateway gets, and the numbers that come of each.

A scenario returns numbers by the keys that it lists with their titles. Where a gateway fails in
one, its other numbers stand.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from benchmarks import scrape
from benchmarks.peers import loads
from benchmarks.peers.running import Running, cpu

Numbers = dict[str, float | None]

KIB, MIB = 1 << 10, 1 << 20

BODIES = {"1k": 1_000, "100k": 100_000, "1m": 1_000_000, "10m": 10_000_000}

P99_BOUND_S = 0.025
"""What counts as answered in time; well above what the machine itself adds when it is shared."""

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the rate that a crowd reaches, tried until calls are answered in time."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured in one round."""

    turns: int = 6
    """Of the node and the gateway."""
    calls: tuple[int, ...] = (75, 30, 8, 2)
    """One at a time, in each turn, of each size of `BODIES`."""
    rate_per_s: float = 300.0
    due_calls: int = 250
    """At that rate, in each turn."""
    stream_rate_per_s: float = 40.0
    due_streams: int = 20
    """At that rate, in each turn; 64 chunks each."""
    crowd_calls: int = 60
    """Of each of 32 callers."""
    bound_s: float = 1.0
    """Seconds at each rate while the highest is looked for that is answered in time."""
    long_chunks: int = 1024
    """Of each of 64 streams, 5 ms apart."""
    many: tuple[int, ...] = (100, 1000)
    """Streams that are open at once, 10,000 chunks a second together."""
    many_s: float = 2.0
    """How long all of those are open together."""
    most: int = 5000
    """Likewise, of those that take so many; 0 leaves it out."""
    most_s: float = 12.0
    """How long all of those are open together."""


QUICK = Sizes(
    turns=2,
    calls=(10, 3, 1, 1),
    due_calls=20,
    due_streams=3,
    crowd_calls=3,
    bound_s=0.1,
    long_chunks=20,
    many=(10,),
    most=50,
    many_s=0.3,
    most_s=0.3,
)
"""Little of everything, to see that it works."""

SLOW = Sizes(
    turns=3,
    calls=(15, 8, 2, 1),
    rate_per_s=25.0,
    due_calls=50,
    stream_rate_per_s=2.0,
    due_streams=4,
    crowd_calls=10,
    long_chunks=64,
    many=(100,),
    most=0,
)


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway under measurement."""

    gateway: Running
    node: loads.Target
    sizes: Sizes

    @property
    def target(self) -> loads.Target:
        return self.gateway.target


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share does not exceed; there is at least one."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


async def warm(bench: Bench) -> Numbers:
    for target in (bench.node, bench.target):
        await loads.sequential(target, 100)
    await loads.crowd(bench.target, 32, 3)
    bench.gateway.idle_bytes = bench.gateway.rss_bytes()
    return {"idle_mib": bench.gateway.idle_bytes / MIB}


async def bodies(bench: Bench) -> Numbers:
    """One call at a time, node and gateway in turns; the median over turns of what they differ."""
    found: Numbers = {}
    for (name, size), calls in zip(BODIES.items(), bench.sizes.calls, strict=True):
        differences = []
        for _ in range(bench.sizes.turns):
            direct, through = [
                statistics.median(
                    await loads.sequential(target, calls, loads.request(target, size=size))
                )
                for target in (bench.node, bench.target)
            ]
            differences.append(through - direct)
        found[f"added_{name}_ms"] = 1000 * statistics.median(differences)
    return found


async def _open_loops(
    bench: Bench, rate_per_s: float, count: int, stream: tuple[int, float] | None
) -> tuple[list[loads.Answer], list[loads.Answer]]:
    """Return answers of the node and of the gateway, in turns."""
    direct: list[loads.Answer] = []
    through: list[loads.Answer] = []
    for _ in range(bench.sizes.turns):
        for target, answers in ((bench.node, direct), (bench.target, through)):
            data = loads.request(target, stream=stream)
            answers += await loads.open_loop(target, rate_per_s, count, data)
    return direct, through


def _added(name: str, direct: Sequence[float], through: Sequence[float]) -> Numbers:
    """Return by how much quantiles differ, in ms."""
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    return {
        f"{name}_{key}_ms": 1000 * (quantile(through, share) - quantile(direct, share))
        for key, share in shares.items()
    }


async def due(bench: Bench) -> Numbers:
    """Calls at a constant rate, timed from when they were due."""
    sizes = bench.sizes
    direct, through = await _open_loops(bench, sizes.rate_per_s, sizes.due_calls, None)
    took = [[one.end_at - one.begin_at for one in answers] for answers in (direct, through)]
    return {"due_p99_ms": 1000 * quantile(took[1], 0.99), **_added("due_added", *took)}


async def due_streams(bench: Bench) -> Numbers:
    """Streams of 64 chunks that begin at a constant rate."""
    sizes = bench.sizes
    direct, through = await _open_loops(
        bench, sizes.stream_rate_per_s, sizes.due_streams, (64, 0.005)
    )
    first = [
        [one.first_chunk_at - one.begin_at for one in answers] for answers in (direct, through)
    ]
    gaps = [[gap for one in answers for gap in one.gaps_s] for answers in (direct, through)]
    # A gateway that gives all at once has no gaps.
    return {**_added("ttft_added", *first), **(_added("gap_added", *gaps) if gaps[1] else {})}


async def crowd(bench: Bench) -> Numbers:
    """As many calls as 32 callers can make, and then the highest rate answered in time."""
    count = 32 * bench.sizes.crowd_calls
    with cpu(bench.gateway) as spent_s:
        wall_s = await loads.crowd(bench.target, 32, bench.sizes.crowd_calls)
    rate_per_s, data = count / wall_s, loads.request(bench.target)
    found: Numbers = {
        "calls_per_s": rate_per_s,
        "cpu_s_per_1000_calls": 1000 * spent_s() / count,
        "calls_in_time_per_s": None,
    }
    for share in SHARES:
        tried = share * rate_per_s
        calls = max(10, int(tried * bench.sizes.bound_s))
        answers = await loads.open_loop(bench.target, tried, calls, data)
        if quantile([one.end_at - one.begin_at for one in answers], 0.99) <= P99_BOUND_S:
            found["calls_in_time_per_s"] = tried
            break
    return found


async def chunks(bench: Bench) -> Numbers:
    """64 streams at once, 12,800 chunks a second: long ones, and short ones one after another."""
    found: Numbers = {}
    for name, each in (("long", bench.sizes.long_chunks), ("short", 64)):
        begin = loads.clock()
        with cpu(bench.gateway) as spent_s:
            answers = await loads.streams(bench.target, 64, each, 0.005, spread_s=0.05)
        found[f"cpu_s_per_1000_chunks_{name}"] = 1000 * spent_s() / (64 * each)
        if name == "long":
            found["chunks_per_s"] = 64 * each / (loads.clock() - begin)
            found["gap_p99_ms"] = _gap_ms(answers)
    return found


def _gap_ms(answers: Sequence[loads.Answer]) -> float | None:
    gaps = [gap for one in answers for gap in one.gaps_s]
    return 1000 * quantile(gaps, 0.99) if gaps else None


async def many(bench: Bench) -> Numbers:
    """More and more streams at once, 10,000 chunks a second together."""
    found: Numbers = {}
    for count in bench.sizes.many:
        found |= await _open_together(bench, count, seconds_open=bench.sizes.many_s)
    return found


async def most(bench: Bench) -> Numbers:
    """As many as two cores are to hold."""
    if not bench.sizes.most:
        return {}
    return await _open_together(bench, bench.sizes.most, seconds_open=bench.sizes.most_s)


async def _open_together(bench: Bench, count: int, *, seconds_open: float) -> Numbers:
    """Open streams over a while, leave all open for a while, and look at the gateway meanwhile."""
    gap_s = count / 10_000
    # Connections begin at no more than some hundred a second, so that not their beginning is
    # measured; each stream goes on until the last has been open for as long as is asked.
    spread_s = count / 600
    each = 1 + int((spread_s + seconds_open) / gap_s)
    lag_s = None
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(
            loads.streams(bench.target, count, each, gap_s, spread_s=spread_s)
        )
        await asyncio.sleep(spread_s + 0.1 * seconds_open)
        vitals = await bench.gateway.vitals()
        with cpu(bench.gateway) as spent_s:
            await asyncio.sleep(0.8 * seconds_open)
        held = bench.gateway.rss_bytes()
        lag_s = scrape.lag_quantile_s(vitals, await bench.gateway.vitals(), 0.99)
        answers = await reading
    return {
        f"open_{count}_kib": max(0, held - bench.gateway.idle_bytes) / count / KIB,
        f"open_{count}_gap_p99_ms": _gap_ms(answers),
        f"open_{count}_core_share": spent_s() / (0.8 * seconds_open),
        f"open_{count}_lag_p99_ms": None if lag_s is None else 1000 * lag_s,
    }


async def translated(bench: Bench) -> Numbers:
    """Other dialects in front of a node that speaks chat; 32 streams of 64 chunks at once."""
    found: Numbers = {}
    for dialect in ("messages", "responses"):
        key = f"cpu_s_per_1000_chunks_{dialect}"
        try:
            with cpu(bench.gateway) as spent_s:
                await loads.streams(bench.target, 32, 64, 0.005, spread_s=0.05, dialect=dialect)
            found[key] = 1000 * spent_s() / (32 * 64)
        except* RuntimeError:
            found[key] = None
    return found


def titles_of(sizes: Sizes) -> dict[str, str]:
    """Return the titles of all numbers by their keys, in the order in which they are shown."""
    found = {
        f"added_{name}_ms": f"added p50, body of {size // 1000:,} KB, ms"
        for name, size in BODIES.items()
    }
    for key, title in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")):
        found[f"due_added_{key}_ms"] = f"added {title} at a constant rate, ms"
    found["due_p99_ms"] = "p99 at that rate, ms"
    for name, what in (("ttft", "first token"), ("gap", "gap between chunks")):
        for key, title in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")):
            found[f"{name}_added_{key}_ms"] = f"added {what} {title}, ms"
    found |= {
        "calls_per_s": "calls a second on one core, 32 callers",
        "calls_in_time_per_s": f"the same, p99 within {1000 * P99_BOUND_S:.0f} ms",
        "cpu_s_per_1000_calls": "CPU s per 1,000 calls",
        "cpu_s_per_1000_chunks_long": "CPU s per 1,000 chunks, streams of 1,024",
        "cpu_s_per_1000_chunks_short": "CPU s per 1,000 chunks, streams of 64",
        "cpu_s_per_1000_chunks_messages": "the same from Anthropic's dialect",
        "cpu_s_per_1000_chunks_responses": "the same from the Responses dialect",
        "chunks_per_s": "chunks a second of 12,800 offered",
        "gap_p99_ms": "gap p99 meanwhile, ms",
        "idle_mib": "idle, MiB",
    }
    for count in (*sizes.many, *([sizes.most] if sizes.most else [])):
        found |= {
            f"open_{count}_kib": f"{count:,} streams open: KiB for each",
            f"open_{count}_core_share": f"{count:,} streams open: share of a core",
            f"open_{count}_gap_p99_ms": f"{count:,} streams open: gap p99, ms",
            f"open_{count}_lag_p99_ms": f"{count:,} streams open: loop lag p99 within, ms",
        }
    return found


SCENARIOS: Mapping[str, Callable[[Bench], Awaitable[Numbers]]] = {
    "warm": warm,
    # Before what leaves room on the heap, which would hide what streams take.
    "many": many,
    "most": most,
    "bodies": bodies,
    "due": due,
    "due streams": due_streams,
    "crowd": crowd,
    "chunks": chunks,
    "translated": translated,
}
