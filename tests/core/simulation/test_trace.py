"""Traces: read, written, and drawn."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId
from cortex_core.simulation.generate import PATTERNS, Source, TraceFile, generate, ordinary
from cortex_core.simulation.trace import Arrival, line_of, read_trace
from tests.core.simulation.worlds import MODELS, arrivals, asked


@given(arrivals())
def test_what_is_written_is_read(trace: tuple[Arrival, ...]) -> None:
    """Ours: one line for each, with nothing in it that has its default."""
    lines = [line_of(arrival) for arrival in trace]

    assert read_trace(lines, "here") == trace
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)


def test_lines_come_in_any_order_and_begin_at_any_time() -> None:
    """Ours: a gateway writes them when requests end, with the time that it has."""
    lines = [line_of(asked(1000.5, "late")), b"\n", line_of(asked(1000.0, "early"))]

    trace = read_trace(lines, "here")

    assert [(one.at, one.model) for one in trace] == [(0.0, "early"), (0.5, "late")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"nonsense", "malformed"),
        (b'{"at": 1}', "missing required field"),
        (line_of(asked(0, "m")).replace(b"100", b"-1"), "fewer than no tokens"),
        (line_of(asked(0, "m")).replace(b"}", b',"priority":"urgent"}'), "Invalid enum value"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: bytes, why: str) -> None:
    """Ours: with its number and the reason."""
    with pytest.raises(SettingsError, match=rf"here: line 2: .*{why}"):
        read_trace([b"", line], "here")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_seed_gives_a_trace(pattern: str) -> None:
    """Issue: the same one gives the same, and another one another."""
    file = ordinary(pattern, per_second=1.0)

    traces = [generate(file, MODELS, random.Random(seed)) for seed in (1, 1, 2)]

    assert traces[0] == traces[1] != traces[2]
    assert [one.at for one in traces[0]] == sorted(one.at for one in traces[0])
    assert all(0 <= one.at < 3600 for one in traces[0])
    # Two thirds to one and a half of what is to come on average.
    assert 2400 < len(traces[0]) < 5400


@given(st.integers(0, 1000))
def test_popular_models_are_asked_for_more_often(seed: int) -> None:
    """Zipf: the model of rank k is asked for as 1 / k; of four the first gets 48 of 100."""
    file = TraceFile(sources=(Source(callers=("ann",), per_second=1.0, models=MODELS[:4]),))

    counts = Counter(one.model for one in generate(file, (), random.Random(seed)))

    share = counts[MODELS[0]] / sum(counts.values())
    assert 0.42 < share < 0.54


def test_a_day_has_its_night() -> None:
    """Ours: it begins at its quietest, and is busiest in its middle."""
    trace = generate(ordinary("diurnal", 1.0), MODELS, random.Random(0))

    night = sum(one.at < 600 or one.at > 3000 for one in trace)
    noon = sum(1200 < one.at < 2400 for one in trace)
    assert noon > 2 * night


def test_a_burst_is_for_one_model() -> None:
    """Ours: and callers are quiet in between."""
    source = Source(callers=("ann",), pattern="bursts", per_second=0.5, burst_s=30, quiet_s=300)
    trace = generate(TraceFile(sources=(source,)), MODELS, random.Random(0))

    close = [(a, b) for a, b in pairwise(trace) if b.at - a.at < 1.0]
    assert len(close) > len(trace) / 2
    assert sum(a.model == b.model for a, b in close) > 0.95 * len(close)


def test_sessions_of_agents_grow() -> None:
    """Ours: each turn reads what was said before."""
    trace = generate(ordinary("agents", 0.5), MODELS, random.Random(0))
    sessions: dict[str, list[Arrival]] = {}
    for one in trace:
        sessions.setdefault(one.session or "", []).append(one)

    assert "" not in sessions
    longest = max(sessions.values(), key=len)
    assert len(longest) > 5
    assert len({one.model for one in longest}) == 1
    read = [one.prompt_tokens for one in longest]
    assert read == sorted(read)


def test_nobody_asks_for_nothing() -> None:
    """Ours: a definition without models needs a catalogue that has some."""
    with pytest.raises(SettingsError, match=r"sources\[0\].models"):
        generate(ordinary("steady", 1.0), (), random.Random(0))


def test_a_source_names_its_own_models_and_hours() -> None:
    """Ours."""
    source = Source(callers=("ann",), models=(ModelId("other"),), from_s=100, until_s=200)
    trace = generate(TraceFile(sources=(source,)), MODELS, random.Random(0))

    assert {one.model for one in trace} == {"other"}
    assert all(100 <= one.at < 200 for one in trace)
