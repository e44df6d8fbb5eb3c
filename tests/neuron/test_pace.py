"""How quickly a load or a download goes on."""

from hypothesis import given, strategies as st

from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from neuron.lifecycle.events import LoadAsked, LoadProgressed
from neuron.lifecycle.rate import WINDOW_S, Meter
from neuron.lifecycle.replica import step


def test_progress_tells_the_time_that_is_left() -> None:
    """Ours: linear in bytes, by the pace of the stage alone."""
    spec = ModelSpec(model=ModelId("org/model"), harness="simulated")
    state = step(None, LoadAsked(spec=spec, now=0.0)).state
    paces = []
    for stage, done, now in (
        ("downloading", 70, 1.0),
        ("downloading", 90, 2.0),
        ("weights", 5, 8.0),
        ("weights", 25, 10.0),
    ):
        news = LoadProgressed(stage=stage, done_bytes=done, total_bytes=100, now=now)
        state = step(state, news).state
        assert state is not None
        assert state.progress is not None
        paces.append((state.progress.bytes_per_s, state.progress.eta_s))

    assert paces == [(None, None), (20.0, 0.5), (None, None), (10.0, 7.5)]


SAMPLES = st.lists(
    st.tuples(st.floats(0, 30, allow_nan=False), st.integers(0, 1 << 30)), max_size=30
)


@given(SAMPLES)
def test_rate_is_that_of_the_window(steps: list[tuple[float, int]]) -> None:
    """Ours: never negative, and of about the last ten seconds."""
    meter, now, done = Meter(), 0.0, 0
    for pause_s, size in steps:
        now, done = now + pause_s, done + size
        meter = meter.with_sample(now, done)

        assert all(at >= now - WINDOW_S for at, _ in meter.samples[1:])
        rate = meter.bytes_per_s
        assert rate is None or rate >= 0

    assert Meter().with_sample(0, 0).with_sample(4, 100).bytes_per_s == 25
    assert meter.with_sample(now + 1, -1).bytes_per_s is None
