"""The loads that every gateway gets, and the numbers that come of each.

A scenario returns numbers by the keys that it lists with their titles. Where a gateway fails in
one, its other numbers stand.
"""

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from benchmarks import scrape
from benchmarks.peers import loads
from benchmarks.peers.running import Running, cpu
from benchmarks.peers.sizes import Sizes

Numbers = dict[str, float | None]

KIB, MIB = 1 << 10, 1 << 20

BODIES = {"1k": 1_000, "100k": 100_000, "1m": 1_000_000, "10m": 10_000_000}

P99_BOUND_S = 0.025
"""What counts as answered in time; well above what the machine itself adds when it is shared."""

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of the rate that a crowd reaches, tried until calls are answered in time."""

MOST_OPEN = 500
"""Calls that are open at once before a rate is given up: whoever is so far behind is late."""

LEFT_S = 10.0
"""How long a gateway may take to end streams at the node whose callers have left."""


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
    """The first calls, and what it takes when it has had some."""
    for target in (bench.node, bench.target):
        await loads.sequential(target, 100)
    await loads.crowd(bench.target, 32, 3)
    bench.gateway.idle_bytes = bench.gateway.rss_bytes()
    return {
        "cold_start_ms": 1000 * bench.gateway.start_s if bench.gateway.start_s else None,
        "idle_mib": bench.gateway.idle_bytes / MIB,
    }


async def bodies(bench: Bench) -> Numbers:
    """One call at a time, node and gateway in turns; the median over turns of what they differ."""
    found: Numbers = {}
    for (name, size), calls in zip(BODIES.items(), bench.sizes.calls, strict=True):
        differences, spent = [], []
        for _ in range(bench.sizes.turns):
            direct = await _median_s(bench.node, calls, size)
            with cpu(bench.gateway) as spent_s:
                through = await _median_s(bench.target, calls, size)
            differences.append(through - direct)
            spent.append(spent_s())
        found[f"added_{name}_ms"] = 1000 * statistics.median(differences)
        if size == BODIES["1k"]:
            found["cpu_s_per_1000_calls_alone"] = 1000 * statistics.median(spent) / calls
    return found


async def _median_s(target: loads.Target, calls: int, size: int) -> float:
    return statistics.median(
        await loads.sequential(target, calls, loads.request(target, size=size))
    )


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
    """Streams of 16 chunks that begin at a constant rate."""
    sizes = bench.sizes
    direct, through = await _open_loops(
        bench, sizes.stream_rate_per_s, sizes.due_streams, (16, 0.005)
    )
    first = [
        [one.first_chunk_at - one.begin_at for one in answers] for answers in (direct, through)
    ]
    gaps = [[gap for one in answers for gap in one.gaps_s] for answers in (direct, through)]
    # A gateway that gives all at once has no gaps.
    return {**_added("ttft_added", *first), **(_added("gap_added", *gaps) if gaps[1] else {})}


async def crowd(bench: Bench) -> Numbers:
    """As many calls as 32 callers can make, and then the highest rate answered in time."""
    rate_per_s, cpu_s = await _crowds(bench, 32, bench.sizes.crowd_calls)
    data = loads.request(bench.target)
    found: Numbers = {
        "calls_per_s": rate_per_s,
        "cpu_s_per_1000_calls": 1000 * cpu_s,
        "calls_in_time_per_s": None,
    }
    if bench.sizes.wide_calls:
        _, cpu_s = await _crowds(bench, 256, bench.sizes.wide_calls)
        found["cpu_s_per_1000_calls_wide"] = 1000 * cpu_s
    for share in SHARES:
        tried = share * rate_per_s
        calls = max(10, int(tried * bench.sizes.bound_s))
        try:
            answers = await loads.open_loop(bench.target, tried, calls, data, most_open=MOST_OPEN)
        except loads.BehindError:
            continue
        if quantile([one.end_at - one.begin_at for one in answers], 0.99) <= P99_BOUND_S:
            found["calls_in_time_per_s"] = tried
            break
    return found


async def _crowds(bench: Bench, callers: int, calls: int) -> tuple[float, float]:
    """Return calls a second and CPU seconds of each, where so many callers make so many calls."""
    count, rates, spent = callers * calls, [], []
    # The median of some short ones: a machine that is shared is another one at times.
    for _ in range(bench.sizes.turns):
        with cpu(bench.gateway) as spent_s:
            rates.append(count / await loads.crowd(bench.target, callers, calls))
        spent.append(spent_s() / count)
    return statistics.median(rates), statistics.median(spent)


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
    """One stream, and more and more at once."""
    found: Numbers = {}
    for count in bench.sizes.many:
        found |= await _held(bench, count, seconds_open=bench.sizes.many_s)
    return found


async def most(bench: Bench) -> Numbers:
    """As many as two cores are to hold."""
    if not bench.sizes.most:
        return {}
    return await _held(bench, bench.sizes.most, seconds_open=bench.sizes.most_s)


async def _held(bench: Bench, count: int, *, seconds_open: float) -> Numbers:
    """Open streams over a while, leave all open for a while, and look at the gateway meanwhile."""
    gap_s = max(0.005, count / bench.sizes.chunks_per_s)
    # They begin at no more than some hundred a second, so that not their beginning is measured;
    # were they not cut, each would go on for twice as long as is asked.
    spread_s = count / 600
    each = 2 + int(2 * (spread_s + seconds_open) / gap_s)
    watched_s = 0.8 * seconds_open
    async with loads.held(bench.target, count, each, gap_s, spread_s=spread_s) as answers:
        await asyncio.sleep(0.1 * seconds_open)
        for answer in answers:
            answer.gaps_s.clear()
        vitals = await bench.gateway.vitals()
        with cpu(bench.gateway) as spent_s:
            await asyncio.sleep(watched_s)
        gap_ms = _gap_ms(answers)
        taken = bench.gateway.rss_bytes() - bench.gateway.idle_bytes
        lag_s = scrape.lag_quantile_s(vitals, await bench.gateway.vitals(), 0.99)
    await _left_s(bench)
    key = f"open_{count}"
    return {
        # One takes what was there before.
        f"{key}_kib": max(0, taken) / count / KIB if count > 1 else None,
        f"{key}_cpu_s_per_1000_chunks": 1000 * spent_s() / (count * watched_s / gap_s),
        f"{key}_late_p99_ms": None if gap_ms is None else gap_ms - 1000 * gap_s,
        f"{key}_lag_p99_ms": None if lag_s is None else 1000 * lag_s,
    }


async def _left_s(bench: Bench) -> float | None:
    """Wait until the node streams nothing; return for how long, `None` if it goes on."""
    begin = loads.clock()
    while loads.clock() - begin < LEFT_S:
        if not json.loads(await scrape.page(bench.node.port, "/bench"))["streams"]:
            return loads.clock() - begin
        await asyncio.sleep(0.01)
    return None


async def storm(bench: Bench) -> Numbers:
    """Callers that leave in the midst of their streams, some before there is an answer.

    Raises:
        RuntimeError: none has begun, or the node goes on with streams that nobody reads.
    """
    sizes = bench.sizes
    before_s = statistics.median(await loads.sequential(bench.target, sizes.calls[0]))
    with cpu(bench.gateway) as spent_s:
        begun = await loads.storm(bench.target, sizes.cuts, sizes.cuts_per_s, seed=sizes.cuts)
        left_s = await _left_s(bench) if begun else 0.0
    if not begun:
        raise RuntimeError("no stream has begun")
    if left_s is None:
        raise RuntimeError(f"the node still streams {LEFT_S:.0f} s after the callers left")
    after_s = statistics.median(await loads.sequential(bench.target, sizes.calls[0]))
    return {
        "cut_cpu_ms": 1000 * spent_s() / sizes.cuts,
        "cut_left_ms": 1000 * left_s,
        "cut_after": after_s / before_s,
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
        "cpu_s_per_1000_calls_alone": "the same, of one caller",
        "cpu_s_per_1000_calls_wide": "the same, of 256 callers",
        "cpu_s_per_1000_chunks_long": "CPU s per 1,000 chunks, streams of 1,024",
        "cpu_s_per_1000_chunks_short": "CPU s per 1,000 chunks, streams of 64",
        "cpu_s_per_1000_chunks_messages": "the same from Anthropic's dialect",
        "cpu_s_per_1000_chunks_responses": "the same from the Responses dialect",
        "chunks_per_s": "chunks a second of 12,800 offered",
        "gap_p99_ms": "gap p99 meanwhile, ms",
        "cut_cpu_ms": "cancel storm: CPU ms for each stream that is cut",
        "cut_left_ms": "until the node has ended all of them, ms",
        "cut_after": "time of a call after it, over before",
        "cold_start_ms": "from its start to the first answered call, ms",
        "idle_mib": "idle, MiB",
    }
    for count in (*sizes.many, *([sizes.most] if sizes.most else [])):
        what = f"{count:,} streams open" if count > 1 else "one stream open"
        found |= {
            f"open_{count}_kib": f"{what}: KiB for each",
            f"open_{count}_cpu_s_per_1000_chunks": f"{what}: CPU s per 1,000 chunks",
            f"open_{count}_late_p99_ms": f"{what}: gap p99 beyond the node's, ms",
            f"open_{count}_lag_p99_ms": f"{what}: loop lag p99 within, ms",
        }
    found["others_cores"] = "CPU of others on the machine meanwhile, cores"
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
    # What these leave behind is in nothing else: streams that go on; and errors of the node's,
    # after which some gateways rest from it.
    "storm": storm,
    "translated": translated,
}
