"""What a daemon shows of itself, and that it names what holds its loop."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from prometheus_client import CollectorRegistry

from cortex_core.server.drain import Drain
from cortex_core.server.vitals import BEAT_S, QUIET_S, STALL_S, Stalls, Vitals, lags_of, place_of
from tests.server.harness import eventually, get, serving
from tests.server.test_slow_reader import Firehose

WAIT_S = 60.0

DAEMON = """
import asyncio, os, sys, time
from prometheus_client import CollectorRegistry, generate_latest
from cortex_core.server.drain import Drain
from cortex_core.server.logging import logging_to
from cortex_core.server.serve import run
from cortex_core.server.vitals import Vitals

class Work:
    def step(self):
        time.sleep(2)

async def outer():
    Work().step()

async def main():
    registry = CollectorRegistry()
    with Vitals(registry, "cortex", Drain()).running():
        await asyncio.sleep(0.5)
        await asyncio.create_task(outer())
        await asyncio.sleep(0.5)
    sys.stdout.write(generate_latest(registry).decode())

with logging_to(form="json"):
    status = run(main(), "daemon", os.environ)
sys.exit(status)
"""


def test_callback_that_holds_the_loop_is_named() -> None:
    """Ours: one line with file, line and function, and a lag that shows in the series."""
    done = subprocess.run(
        [sys.executable, "-c", DAEMON],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (stall,) = [line for line in lines if line.get("callback") == "outer"]
    assert stall["message"].endswith("by Work.step")
    assert stall["at"] == "<string>:11"
    assert stall["stack"].startswith("Work.step:11 < outer:14")
    buckets = {
        line.split()[0]: float(line.split()[1])
        for line in done.stdout.splitlines()
        if line.startswith("cortex_event_loop_lag_seconds")
    }
    # Two seconds are twenty looks, of which the last ones were late by little.
    name = "cortex_event_loop_lag_seconds"
    late = buckets[f"{name}_count"] - buckets[f'{name}_bucket{{le="0.5"}}']
    assert late >= 10
    assert "cortex_event_loop_stalls_total 1.0\n" in done.stdout


def test_long_lag_counts_once_for_each_look_that_it_took() -> None:
    """Ours: else a percentile would tell of one bad moment in a thousand good ones."""
    assert list(lags_of(-0.1)) == [0.0]
    assert list(lags_of(0.05)) == [0.05]
    assert list(lags_of(2.5 * BEAT_S)) == pytest.approx([2.5 * BEAT_S, 1.5 * BEAT_S, 0.5 * BEAT_S])


def looked(stalls: Stalls, begin_s: float, beats: int, seconds: float) -> tuple[float, list[str]]:
    """Look at a loop that stands still for a while and goes on; return who was named."""
    here, now_s, said = sys._getframe(), begin_s, []
    for _ in range(round(seconds / BEAT_S)):
        now_s += BEAT_S
        assert stalls.look(now_s, beats, here) is None
    now_s += BEAT_S
    if stall := stalls.look(now_s, beats + 1, here):
        said.append(f"{stall.place.function} {stall.unsaid}")
    return now_s, said


def test_short_stalls_are_not_named() -> None:
    """Ours: the bound is a quarter of a second."""
    stalls = Stalls(0.0)
    stalls.look(0.0, 1, None)

    assert looked(stalls, 0.0, 1, STALL_S - BEAT_S)[1] == []


def test_lines_are_few_and_tell_how_many_are_left_out() -> None:
    """Ours: a fault that comes with every request must not fill the log."""
    stalls = Stalls(0.0)
    stalls.look(0.0, 1, None)

    now_s, first = looked(stalls, 0.0, 1, 1.0)
    now_s, second = looked(stalls, now_s, 2, 1.0)
    now_s, third = looked(stalls, now_s, 3, 1.0)
    stalls.look(now_s + QUIET_S, 5, None)
    _, last = looked(stalls, now_s + QUIET_S, 5, 1.0)

    assert (first, second, third, last) == (["looked 0"], [], [], ["looked 2"])
    assert stalls.count == 4


async def test_loop_that_waits_has_nobody_to_name() -> None:
    """Ours: it waits in the selector, or gets no time from the machine."""
    loop_thread = threading.get_ident()

    def is_idle() -> bool:
        return place_of(sys._current_frames()[loop_thread]) is None

    def idles() -> bool:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if is_idle():
                return True
        return False

    assert not is_idle()
    assert await asyncio.to_thread(idles)


async def test_process_and_requests_are_shown() -> None:
    """Prometheus, "Writing client libraries", process metrics; the others are ours."""
    registry = CollectorRegistry()

    with Vitals(registry, "neuron", Drain()).running():
        assert "loop-vitals" in {thread.name for thread in threading.enumerate()}

    value = registry.get_sample_value
    assert (value("process_open_fds") or 0) > 0
    assert (value("process_resident_memory_bytes") or 0) > 0
    assert value("process_cpu_seconds_total") is not None
    assert value("neuron_open_requests") == 0
    assert value("neuron_event_loop_lag_seconds_count") == 0


async def test_what_is_open_is_counted_and_not_afterwards() -> None:
    """Ours: connections, idle ones too, their requests, and what a slow caller leaves to us."""
    registry = CollectorRegistry()

    def value(name: str) -> float:
        return registry.get_sample_value(name) or 0

    async with serving(Firehose(b"x" * 8192), keep_alive_s=WAIT_S) as server:
        Vitals(registry, "cortex", server.drain).of(server.listeners)
        await server.connect()
        client = await server.connect(receive_buffer=4096)
        await client.send(get())

        await eventually(lambda: value("cortex_unsent_bytes") > 0)
        assert value("cortex_open_requests") == 1
        await eventually(lambda: value("cortex_open_connections") == 2)

        for one in server.clients:
            one.close()
        await eventually(lambda: value("cortex_open_connections") == 0)
        assert value("cortex_unsent_bytes") == 0
        await eventually(lambda: value("cortex_open_requests") == 0)
