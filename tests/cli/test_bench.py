"""`cortex bench`: what callers saw, measured from when a request was due."""

import asyncio
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given, strategies as st

from cortex_cli.bench.caller import Stream
from cortex_cli.bench.lag import lag_of, metrics_url, read_buckets, with_looks
from cortex_cli.bench.open_loop import open_loop
from cortex_cli.bench.samples import Sample, spread, summarize
from cortex_cli.context import Style
from cortex_cli.render.bench import render_bench
from tests.cli.conftest import Run

TOKEN = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
ERROR = b'data: {"error":{"message":"the engine died"}}\n\n'
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_are_values_that_were_measured(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    ranked = sorted(values)
    for share, value in ((0.5, found.p50_s), (0.99, found.p99_s), (0.999, found.p999_s)):
        assert sum(other <= value for other in ranked) >= math.floor(share * len(ranked))
        assert value in ranked
    assert found.p50_s <= found.p99_s <= found.p999_s <= found.max_s == ranked[-1]


def test_nothing_measured_is_no_zero() -> None:
    assert spread([]) is None
    summary = summarize([Sample(outcome="503", sent_s=0.0, end_s=1.0)], 1.0, 1.0)
    assert (summary.total, summary.outcomes) == (None, {"503": 1})


@pytest.mark.parametrize(
    ("pieces", "outcome", "events", "first_token_at"),
    [
        ([ROLE, TOKEN, TOKEN + DONE], "ok", 3, 2.0),
        ([ROLE + TOKEN, TOKEN], "cut", 3, 1.0),
        ([TOKEN, ERROR, DONE], "error", 2, 1.0),
        ([ROLE[:9], ROLE[9:] + DONE], "ok", 1, None),
        ([b": still loading\n\n", DONE], "ok", 0, None),
        ([b"data: no json\n\n", DONE], "ok", 1, None),
        ([], "cut", 0, None),
    ],
)
def test_a_stream_is_read_as_it_comes(
    pieces: list[bytes], outcome: str, events: int, first_token_at: float | None
) -> None:
    """Ours: only a stream with its end is whole, and a role is no token."""
    stream = Stream(due_at=10.0)
    for number, piece in enumerate(pieces, start=1):
        stream.read(piece, 10.0 + number)

    assert (stream.outcome, stream.events, stream.first_token_s) == (
        outcome,
        events,
        first_token_at,
    )
    assert all(gap == 1.0 for gap in stream.gaps_s)


async def test_a_slow_answer_delays_no_other_request() -> None:
    """Issue: open-loop, no coordinated omission."""
    dues: list[float] = []
    may_end = asyncio.Event()

    async def call(due_at: float) -> Sample:
        dues.append(due_at)
        if len(dues) == 20:
            may_end.set()
        # All wait for the last one: a loop that waited for answers would never come to it.
        await may_end.wait()
        return Sample(outcome="ok", sent_s=0.0, end_s=0.0)

    async with asyncio.timeout(20):
        samples = await open_loop(call, rate_per_s=200.0, duration_s=0.1)

    assert len(samples) == 20
    gaps = [later - earlier for earlier, later in itertools.pairwise(dues)]
    assert all(gap == pytest.approx(0.005) for gap in gaps)


def test_what_is_shown_says_when_it_is_worth_nothing() -> None:
    late = [Sample(outcome="ok", sent_s=0.2, first_byte_s=0.3, end_s=0.4)] * 3
    text = render_bench({"http://a": summarize(late, 5.0, 1.0)}, Style())

    assert "believe none of it" in text
    assert "3 requests, 5 a second: 3 ok" in text


PAGE = """# TYPE cortex_event_loop_lag_seconds histogram
cortex_event_loop_lag_seconds_bucket{le="0.001"} %d
cortex_event_loop_lag_seconds_bucket{le="0.005"} %d
cortex_event_loop_lag_seconds_bucket{le="+Inf"} %d
cortex_event_loop_lag_seconds_count 9
cortex_requests_total{le="0.001"} 7
"""


@given(st.lists(st.sampled_from([0.0005, 0.002, 9.0]), min_size=1))
def test_the_lag_is_no_less_than_what_was_measured(late: list[float]) -> None:
    """Ours: an edge is what so many of the looks do not exceed."""
    lag = lag_of({edge: sum(one <= edge for one in late) for edge in (0.001, 0.005, math.inf)})

    assert lag is not None
    assert lag.looks == len(late)
    for share, edge in ((0.5, lag.p50_s), (0.99, lag.p99_s)):
        within = sum(one <= (math.inf if edge is None else edge) for one in late)
        assert within >= share * len(late)


def test_looks_of_all_turns_and_processes_count() -> None:
    """Ours: what came before a turn is not of it."""
    two = "".join(PAGE.replace("{le", f'{{worker="{n}",le') % (1, 2, 3) for n in (1, 2))
    before, after = read_buckets(two), read_buckets(PAGE % (10, 14, 15))

    assert before == {0.001: 2, 0.005: 4, math.inf: 6}
    assert after is not None
    assert with_looks({0.001: 1}, before, after) == {0.001: 9, 0.005: 10, math.inf: 9}


def test_a_gateway_that_was_restarted_has_no_known_lag() -> None:
    """Ours: counts that went down say nothing."""
    assert with_looks({}, {0.001: 5.0}, {0.001: 4.0}) is None


@pytest.mark.parametrize("page", ["", "<html>", PAGE.replace("%d", "many")])
def test_a_page_without_the_lag_is_none(page: str) -> None:
    """Ours: whoever listens there is no gateway."""
    assert read_buckets(page) is None


@pytest.mark.parametrize(
    ("endpoint", "given", "url"),
    [
        ("http://127.0.0.1:31313", None, "http://127.0.0.1:31314/metrics"),
        ("http://[::1]:80/", None, "http://[::1]:81/metrics"),
        ("https://gateway.example", None, None),
        ("http://a:65535", None, None),
        ("http://a:no", None, None),
        ("http://a:1", "http://b:2/", "http://b:2/metrics"),
        ("http://a:1", "http://b/its/metrics", "http://b/its/metrics"),
    ],
)
def test_metrics_are_at_the_next_port(endpoint: str, given: str | None, url: str | None) -> None:
    """Ours: as `cortex up` and the settings have it when nothing else is said."""
    assert metrics_url(endpoint, given) == url


async def test_the_lag_of_the_gateway_is_shown(cortex: Run) -> None:
    """Issue: event-loop lag among what `cortex bench` tells."""
    pages = itertools.count(1)

    def answer(request: web.Request) -> object:
        if request.path == "/metrics":
            number = next(pages)
            return web.Response(text=PAGE % (number, 10 * number, 10 * number))
        return [TOKEN, DONE]

    async with server(answer) as url:
        load = ("--rate", "50", "--duration", "0.1", "--metrics", url)
        shown = await asyncio.to_thread(cortex, "bench", "m", "--endpoint", url, *load)
        machine = await asyncio.to_thread(cortex, "bench", "m", "--endpoint", url, *load, "--json")

    assert "lag of its event loop: p50 at most 5.00 ms, p99 at most 5.00 ms" in shown.stdout
    assert json.loads(machine.stdout)[url]["lag"] == {"looks": 10, "p50_s": 0.005, "p99_s": 0.005}


async def test_a_lag_that_nobody_shows_is_no_error(cortex: Run) -> None:
    """Ours: metrics are on a listener of their own, which callers need not reach."""
    async with server(lambda request: [TOKEN, DONE]) as url:
        load = ("--rate", "50", "--duration", "0.1", "--metrics", "http://127.0.0.1:1")
        shown = await asyncio.to_thread(cortex, "bench", "m", "--endpoint", url, *load)

    assert shown.returncode == 0
    assert "lag of its event loop: not known" in shown.stdout


@asynccontextmanager
async def server(answer: Callable[[web.Request], object]) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.StreamResponse:
        result = answer(request)
        assert isinstance(result, list | web.StreamResponse)
        if isinstance(result, web.StreamResponse):
            return result
        stream = web.StreamResponse()
        await stream.prepare(request)
        for piece in result:
            await stream.write(piece)
        return stream

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    app.router.add_get("/metrics", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_two_servers_are_compared(cortex: Run) -> None:
    """Issue: interleaved rounds, ratios."""
    async with (
        server(lambda request: [ROLE, TOKEN, TOKEN, DONE]) as one,
        server(lambda request: [TOKEN, DONE]) as two,
    ):
        arguments = ["bench", "m", "--endpoint", one, "--against", two, "--rate", "50"]
        arguments += ["--duration", "0.2", "--rounds", "2", "--max-tokens", "7"]
        shown = await asyncio.to_thread(cortex, *arguments)
        machine = await asyncio.to_thread(cortex, *arguments, "--json")

    assert (shown.returncode, machine.returncode) == (0, 0), shown.stdout
    assert f"{two} against the first" in shown.stdout
    assert re.search(r"10 requests, 50 a second: 10 ok", shown.stdout)
    found = json.loads(machine.stdout)
    assert [found[url]["outcomes"] for url in (one, two)] == [{"ok": 10}, {"ok": 10}]
    assert found[one]["first_token"]["count"] == 10


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (lambda request: web.Response(status=503), "503"),
        (lambda request: [TOKEN], "cut"),
        (lambda request: [TOKEN, ERROR], "error"),
    ],
)
async def test_requests_that_end_badly_are_told(
    cortex: Run, answer: Callable[[web.Request], object], outcome: str
) -> None:
    async with server(answer) as url:
        shown = await asyncio.to_thread(
            cortex, "bench", "m", "--endpoint", url, "--rate", "20", "--duration", "0.1"
        )

    assert shown.returncode == 1
    assert f"2 {outcome}" in shown.stdout
    assert "2 requests did not end well" in shown.stderr


async def test_a_server_that_is_not_there_is_told(cortex: Run) -> None:
    async with server(lambda request: []) as url:
        pass
    shown = await asyncio.to_thread(
        cortex, "bench", "m", "--endpoint", url, "--rate", "20", "--duration", "0.1", "--no-stream"
    )

    assert shown.returncode == 1
    assert "2 unreachable" in shown.stdout


def test_a_rate_that_is_none_is_refused(cortex: Run) -> None:
    assert cortex("bench", "m", "--rate", "0").returncode == 2
