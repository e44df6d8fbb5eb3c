"""The benchmarks run; what they measure is nobody's business here."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import engine, probes, soak
from benchmarks.engine_loads import Run
from benchmarks.engine_servers import SERVERS
from benchmarks.page import with_table
from benchmarks.peers import loads
from tests.repository.checkout import PACKAGES, ROOT


async def run(module: str, *arguments: str) -> tuple[int | None, str]:
    """Run a benchmark and return its status and what it says of errors."""
    paths = [*(str(ROOT / "packages" / name / "src") for name in PACKAGES), str(ROOT)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"benchmarks.{module}", *arguments),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_calls_that_pile_up_are_given_up_before_files_run_out() -> None:
    """Ours: a rate that is not kept up with is no reason to end the comparison."""
    made: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    target = loads.Target(port=server.sockets[0].getsockname()[1])
    async with asyncio.timeout(5):
        with pytest.raises(loads.BehindError):
            await loads.open_loop(target, 10_000, 10_000, loads.request(target), most_open=20)
        server.close()
        for writer in made:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    assert len(made) <= 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
async def test_gateways_are_compared_in_the_smallest_size(tmp_path: Path) -> None:
    """Issue: any figure can be produced again with one command."""
    options = ("--folder", str(tmp_path), "--out", str(tmp_path / "found"))
    status, said = await run("peers", "cortex", "--quick", "--rounds", "1", *options)

    assert status == 0, said
    rounds = {
        one["name"]: one for one in json.loads((tmp_path / "found.json").read_text())["rounds"]
    }
    assert not rounds["direct"]["failed"]
    assert not rounds["cortex"]["failed"]
    assert rounds["direct"]["numbers"]["calls_per_s"] > 0
    ours = rounds["cortex"]["numbers"]
    assert ours["cpu_s_per_1000_chunks_messages"] > 0
    assert ours["open_1_cpu_s_per_1000_chunks"] > 0
    assert ours["cold_start_ms"] > 0
    assert ours["cut_left_ms"] >= 0
    assert "| cortex over | direct |" in (tmp_path / "found.md").read_text()
    assert (tmp_path / "found.svg").read_text().endswith("</svg>\n")


def looks(count: int, calls: int, kib_per_call: float, **fields: float) -> tuple[soak.Look, ...]:
    """Return looks at a gateway that grows as it is told, after a start that grows anyhow."""
    return tuple(
        soak.Look(
            calls=(number + 1) * calls,
            rss_mib=100 + min(number, count // 4) + number * calls * kib_per_call / 1024,
            descriptors=40 + round(number * fields.get("descriptors", 0)),
            threads=3 + round(number * fields.get("threads", 0)),
            in_flight=0,
            node_streams=0,
            lag_p99_ms=2.5 * (1 + max(0, number - 20) * fields.get("lag", 0)),
            p99_ms=None,
        )
        for number in range(count)
    )


def test_memory_that_stays_after_its_start_is_no_growth() -> None:
    """Ours: what a process takes to warm up is not what it takes for each call."""
    assert soak.growth_kib(looks(40, 25_000, 0.0)) == pytest.approx(0, abs=1e-6)
    assert not soak.faults(looks(40, 25_000, 0.0))


@pytest.mark.parametrize(
    ("grows", "said"),
    [
        ({"descriptors": 3}, "descriptors"),
        ({"threads": 0.1}, "threads"),
        ({"lag": 1}, "lag"),
    ],
)
def test_what_grows_is_told(grows: dict[str, float], said: str) -> None:
    """Issue: a soak with memory, file descriptors and lag flat."""
    (fault,) = soak.faults(looks(40, 25_000, 0.0, **grows))

    assert said in fault


def test_sixteen_bytes_for_each_call_are_found() -> None:
    """Ours: no object is smaller."""
    grown = looks(40, 25_000, 16 / 1024)

    assert soak.growth_kib(grown) == pytest.approx(1562.5)
    assert "memory" in soak.faults(grown)[0]


def test_few_calls_say_nothing_about_memory() -> None:
    """Ours: what an allocator keeps would be taken for growth."""
    assert soak.growth_kib(looks(40, 100, 1.0)) is None
    assert soak.growth_kib(looks(5, 1_000_000, 1.0)) is None


def test_a_soak_that_ends_early_leaves_what_was_seen(tmp_path: Path) -> None:
    """Ours: half an hour is not thrown away for its last call."""
    kept = soak.Kept(tmp_path / "found")
    kept.change(load="a load")
    for one in looks(6, 100_000, 0.0):
        kept.add(one)
    kept.change(failure="HTTP/1.1 502")

    assert soak.verdict(kept.soak) == ["it ended early: HTTP/1.1 502"]
    assert len(json.loads((tmp_path / "found.json").read_text())["looks"]) == 6
    assert "Verdict: it ended early: HTTP/1.1 502." in (tmp_path / "found.md").read_text()


@pytest.mark.parametrize("page", ["", "<!-- begin a -->", "<!-- begin b --><!-- end b -->"])
def test_a_page_without_the_marks_is_refused(page: str) -> None:
    """Ours: a table that went nowhere would be missed by nobody."""
    with pytest.raises(ValueError, match="begin a"):
        with_table(page, "a", "table")


def test_a_table_takes_the_place_of_the_one_before() -> None:
    """Ours: what stands around it stays."""
    page = with_table("one <!-- begin a -->old<!-- end a --> two", "a", "new\n")

    assert with_table(page, "a", "new\n") == page
    assert page == "one <!-- begin a -->\n\nnew\n\n<!-- end a --> two"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
@pytest.mark.parametrize("load", [("--minutes", "0.02", "--slice", "2"), ("--requests", "64")])
async def test_a_gateway_is_soaked_in_the_smallest_size(
    tmp_path: Path, load: tuple[str, ...]
) -> None:
    """Issue: memory, descriptors and lag are looked at, and nothing is in flight at the end."""
    status, said = await run("soak", *load, "--out", str(tmp_path / "found.json"))

    # So few calls say nothing about growth.
    assert status in (0, 1), said
    *_, last = json.loads((tmp_path / "found.json").read_text())["looks"]
    assert last["in_flight"] == last["node_streams"] == 0
    assert last["calls"] > 0
    assert last["descriptors"] > 0


@pytest.mark.slow
async def test_a_cold_start_is_measured_in_the_smallest_size(tmp_path: Path) -> None:
    """Issue: what the gateway adds to a load, and to one that others give way to."""
    page = tmp_path / "page.md"
    page.write_text("<!-- begin cold --><!-- end cold -->")

    status, said = await run("cold", "1", "--page", str(page))

    assert status == 0, said
    assert "| load |" in page.read_text()
    assert "| swap |" in page.read_text()


def test_every_seam_of_the_stages_is_there() -> None:
    """Ours: whoever moves a function that is measured says where it went."""
    for seam in probes.SEAMS:
        owner, name = probes.found(seam)
        assert callable(getattr(owner, name))


def test_the_time_of_a_stage_is_without_that_of_those_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours: stages add up; a coroutine that waits is in none."""
    now = iter(range(0, 1_000_000, 10))
    monkeypatch.setattr(probes, "clock", lambda: next(now))
    watch = probes.Stopwatch()
    inner = watch.wrapped(lambda: None, 2, 2)

    async def wait() -> None:
        inner()
        await asyncio.sleep(0)
        inner()

    running = watch.wrapped(wait, 1, 3)()
    running.send(None)
    with pytest.raises(StopIteration):
        running.send(None)

    passed = watch.passed()
    # Every look at the clock is ten later than the one before.
    assert passed.spent_ns[1:4] == (20, 20, 20)
    assert passed.entered[1:4] == (1, 2, 1)
    assert passed.left[:4] == (2, 1, 0, 1)


def test_a_probe_hands_on_what_is_thrown_into_a_coroutine() -> None:
    """Ours: a gateway with clocks around it cancels as one without does."""
    watch = probes.Stopwatch()
    seen = []

    async def wait() -> str:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return "done"

    async def cancelled() -> None:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(watch.wrapped(wait, 1, 1)())
            await asyncio.sleep(0)
            task.cancel()

    asyncio.run(cancelled())

    assert seen == ["cancelled"]
    assert watch.entered[1] == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
async def test_stages_are_told_apart_in_the_smallest_size(tmp_path: Path) -> None:
    """Issue: each stage of a request has its cost, and the whole is told beside their sum."""
    options = ("--calls", "100", "--rounds", "1", "--out", str(tmp_path / "found"))
    status, said = await run("stages", *options)

    assert status == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    call, fresh = found["columns"]["call"], found["columns"]["call, new connection"]
    # With so few calls the cost of the clocks may be all that a small stage has.
    assert all(call[stage] > 0 for stage in ("walk", "answer", "read"))
    assert fresh["accept"] > call["accept"]
    assert found["totals"]["call"] > 0
    assert "| without clocks |" in (tmp_path / "found.md").read_text()


def runs_of(*walls_s: float) -> list[Run]:
    """Return runs of ten requests each that took so long."""
    return [
        Run(
            wall_s=wall_s,
            requests=10,
            tokens=0,
            first_s=(wall_s / 2, wall_s),
            gaps_s=(),
            front_s=0.2,
            core_s=0.3,
        )
        for wall_s in walls_s
    ]


def test_engines_are_compared_turn_by_turn() -> None:
    """Ours: a machine that is slower in one round than in the next is so for both servers."""
    by_server = dict(zip(SERVERS, (runs_of(1, 4, 2), runs_of(0.5, 4, 4)), strict=True))

    assert engine.ratios(by_server) == pytest.approx((2, 1, 0.5))


def test_the_page_of_the_engine_tells_the_whole_cpu_time() -> None:
    """Ours: throughput on a busy machine is chance, CPU time much less so."""
    shown = engine.figures(runs_of(1, 1))
    found = engine.Comparison(
        date="2026-11-26",
        machine="2 cores",
        engine="none",
        rounds=1,
        repeats=2,
        scale=1,
        took_s=4,
        others_cores=0.5,
        loads={"chat": {**dict.fromkeys(SERVERS, shown), "ratio": {"requests_per_s": 1.25}}},
        ratios={"chat": (1.0, 1.5)},
    )

    page = engine.markdown(found)

    assert "| chat | **1.25** | 1.00 to 1.50 | 1.00 |" in page
    assert "| chat | neuron | 10.00 |" in page
    assert shown["front_ms"] + shown["core_ms"] == pytest.approx(50)
