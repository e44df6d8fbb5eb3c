"""Load and series of an engine."""

import pytest
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge

from neuron.engines.vllm_stats import LoadWindow, render_metrics

steps = st.lists(
    st.tuples(st.floats(0, 2), st.integers(0, 1000), st.integers(0, 1000)), max_size=30
)


def test_load_is_what_the_scheduler_said_last() -> None:
    """vLLM: its stat loggers get the counts of every step."""
    window = LoadWindow()
    window.set_scheduler(3, 2, 0.5)
    window.set_scheduler(1, 0, 0.25)

    load = window.read(0.0)

    assert (load.running, load.waiting, load.kv_cache_usage) == (1, 0, 0.25)


def test_rates_are_over_the_last_seconds() -> None:
    """Ours: five of them."""
    window = LoadWindow()
    window.add_tokens(100.0, 50, 0)
    window.add_tokens(101.0, 0, 25)

    busy, idle = window.read(101.0), window.read(106.5)

    assert busy.prefill_tok_per_s == pytest.approx(10)
    assert busy.decode_tok_per_s == pytest.approx(5)
    assert (idle.prefill_tok_per_s, idle.decode_tok_per_s) == (0, 0)


@given(steps)
def test_rates_are_zero_once_nothing_runs(taken: list[tuple[float, int, int]]) -> None:
    """Ours: whatever ran before."""
    window, now = LoadWindow(), 0.0
    for pause, prompt, generated in taken:
        now += pause
        window.add_tokens(now, prompt, generated)

    load = window.read(now + 5.1)

    assert (load.prefill_tok_per_s, load.decode_tok_per_s) == (0, 0)


@given(steps)
def test_rates_are_of_the_steps_of_the_last_seconds(taken: list[tuple[float, int, int]]) -> None:
    """Ours: though none is looked at again when they are read."""
    window, now, made = LoadWindow(), 0.0, []
    for pause, prompt, generated in taken:
        now += pause
        window.add_tokens(now, prompt, generated)
        made.append((now, prompt, generated))

    load = window.read(now)

    recent = [step for step in made if step[0] >= now - 5]
    assert load.prefill_tok_per_s == sum(prompt for _, prompt, _ in recent) / 5
    assert load.decode_tok_per_s == sum(generated for *_, generated in recent) / 5


def make_registry(value: float) -> CollectorRegistry:
    """Return a registry with one gauge and one counter, as an engine has them."""
    registry = CollectorRegistry()
    Gauge("vllm:running", "Running.", ["engine"], registry=registry).labels("0").set(value)
    Counter("vllm:tokens", "Tokens.", registry=registry).inc(value)
    return registry


def test_series_of_engines_are_one_text_with_each_family_once() -> None:
    """Prometheus text format: one HELP and one TYPE per family, its samples together."""
    text = render_metrics({"org/a": make_registry(1), "org/b": make_registry(2)}).decode()

    assert text.count("# TYPE vllm:running gauge") == 1
    assert 'vllm:running{engine="0",model="org/a"} 1.0' in text
    assert 'vllm:running{engine="0",model="org/b"} 2.0' in text
    assert 'vllm:tokens_total{model="org/b"} 2.0' in text


def test_no_engine_has_no_series() -> None:
    """Ours: nothing, not an empty family."""
    assert render_metrics({}) == b""
