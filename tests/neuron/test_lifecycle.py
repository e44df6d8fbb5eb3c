"""The pure rooms: the replica's life, and admission."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.harness import Capabilities, Limit, ModelInfo, ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.admission import refusal
from neuron.lifecycle.difference import difference
from neuron.lifecycle.events import (
    CancelLoad,
    DisposeEngine,
    EngineDied,
    Event,
    LoadAsked,
    LoadEnded,
    LoadFailed,
    LoadPlaced,
    LoadProgressed,
    RecoveryFailed,
    Refuse,
    RequestBegan,
    RequestEnded,
    Retry,
    SleepAsked,
    SleepEnded,
    StartLoad,
    StartRecovery,
    StartSleep,
    StartUnload,
    StartWake,
    UnloadAsked,
    UnloadEnded,
    WakeAsked,
    WakeEnded,
    WakeRefused,
)
from neuron.lifecycle.recovery import Attempt, FailureKind
from neuron.lifecycle.replica import ReplicaState, step

MODEL = ModelId("org/model")
SPEC = ModelSpec(model=MODEL, harness="simulated")
INFO = ModelInfo(capabilities=Capabilities(chat=True, sleep=True), limit=Limit(context=10))

specs = st.builds(
    ModelSpec,
    model=st.just(MODEL),
    harness=st.sampled_from(["simulated", "vllm"]),
    quant=st.sampled_from([None, "awq"]),
)
retries: st.SearchStrategy[Retry | None] = st.none() | st.just(
    Retry(attempt=Attempt(number=1, delay_s=1.0), at_epoch=6.0)
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(LoadAsked, spec=specs, now=st.just(1.0)),
    st.builds(LoadPlaced, devices=st.just((DeviceIndex(0),)), now=st.just(1.5)),
    st.builds(
        LoadProgressed,
        stage=st.just("weights"),
        done_bytes=st.none() | st.integers(0, 9),
        total_bytes=st.none() | st.integers(0, 9),
        now=st.just(2.0),
    ),
    st.builds(LoadEnded, info=st.just(INFO), now=st.just(3.0)),
    st.builds(LoadFailed, error=st.just("no"), now=st.just(3.0), is_refused=st.booleans()),
    st.builds(UnloadAsked, now=st.just(4.0), drain_timeout_s=st.sampled_from([0.0, 5.0])),
    st.builds(
        SleepAsked,
        level=st.sampled_from([1, 2]),
        now=st.just(3.5),
        drain_timeout_s=st.sampled_from([0.0, 5.0]),
    ),
    st.builds(SleepEnded, host_used_bytes=st.integers(0, 9), now=st.just(3.6)),
    st.builds(WakeAsked, now=st.just(3.7)),
    st.builds(WakeEnded, now=st.just(3.8)),
    st.builds(WakeRefused, now=st.just(3.8)),
    st.builds(UnloadEnded),
    st.builds(EngineDied, error=st.just("dead"), now=st.just(5.0), retry=retries),
    st.builds(
        RecoveryFailed,
        error=st.just("no"),
        now=st.just(5.5),
        kind=st.sampled_from(FailureKind),
        retry=retries,
    ),
    st.builds(RequestBegan),
    st.builds(RequestEnded, now_epoch=st.just(6.0)),
)


COMING = (ReplicaStatus.LOADING, ReplicaStatus.RECOVERING)


def _run(history: list[Event]) -> tuple[ReplicaState | None, list[object]]:
    state = None
    effects: list[object] = []
    for event in history:
        after = step(state, event)
        state = after.state
        effects.extend(after.effects)
    return state, effects


@given(st.lists(events, max_size=40))
def test_an_engine_is_there_exactly_while_a_model_is_loaded_or_being_unloaded(
    history: list[Event],
) -> None:
    """Ours: whatever the order of events, at most one load or engine of a model exists."""
    engines = loads = 0
    state: ReplicaState | None = None
    for event in history:
        was = state.status if state is not None else None
        if state is not None and was in COMING and not state.is_waking:
            if isinstance(event, LoadEnded):
                engines, loads = engines + 1, loads - 1
            if isinstance(event, LoadFailed) and was is ReplicaStatus.LOADING:
                loads -= 1
            is_given_up = isinstance(event, RecoveryFailed) and event.retry is None
            if is_given_up and was is ReplicaStatus.RECOVERING:
                loads -= 1
        if isinstance(event, UnloadEnded) and state is not None:
            engines = 0 if state.status is ReplicaStatus.UNLOADING else engines
        after = step(state, event)
        for effect in after.effects:
            loads += isinstance(effect, StartLoad | StartRecovery)
            loads -= isinstance(effect, CancelLoad)
            engines -= isinstance(effect, DisposeEngine)
        state = after.state

        assert loads in (0, 1)
        assert engines in (0, 1)
        assert loads + engines <= 1
        status = state.status if state is not None else None
        is_waking = state is not None and state.is_waking
        assert (loads == 1) == (status in COMING and not is_waking)
        assert (state is not None and state.retry is not None) == (
            status is ReplicaStatus.RECOVERING
        )
        if status in (ReplicaStatus.LOADED, ReplicaStatus.SLEEPING) or is_waking:
            assert engines == 1
        if status in (None, ReplicaStatus.FAILED):
            assert engines == 0


@given(st.lists(events, max_size=40))
def test_requests_are_never_counted_below_zero(history: list[Event]) -> None:
    """Ours: an end that comes too late changes nothing."""
    state, _ = _run(history)

    assert state is None or state.in_flight >= 0


@given(st.lists(events, max_size=40))
def test_only_a_loaded_model_admits(history: list[Event]) -> None:
    """Ours: admission follows the state, and draining stops everything."""
    state, _ = _run(history)

    admitted = refusal(MODEL, state, is_draining=False) is None
    assert admitted == (state is not None and state.status is ReplicaStatus.LOADED)
    assert refusal(MODEL, state, is_draining=True) is not None


@given(st.lists(events, max_size=60))
def test_a_model_sleeps_and_wakes_once_at_a_time(history: list[Event]) -> None:
    """Ours: sleeps and wakes are started one after the other, and only of an engine that is up."""
    state = None
    for event in history:
        was_busy = state is not None and (state.is_falling_asleep or state.is_waking)
        after = step(state, event)
        started = [e for e in after.effects if isinstance(e, StartSleep | StartWake)]
        state = after.state
        is_busy = state is not None and (state.is_falling_asleep or state.is_waking)

        assert len(started) <= 1
        assert not (started and was_busy)
        assert bool(started) == (is_busy and not was_busy)
        if state is not None and state.status is ReplicaStatus.SLEEPING:
            assert state.sleep_level in (1, 2)
            assert state.host_used_bytes is not None
        if state is not None and state.status in (ReplicaStatus.LOADED, ReplicaStatus.FAILED):
            assert (state.sleep_level, state.host_used_bytes) == (None, None)


LOADED: list[Event] = [LoadAsked(spec=SPEC, now=0.0), LoadEnded(info=INFO, now=1.0)]
ASLEEP: list[Event] = [
    *LOADED,
    SleepAsked(level=1, now=2.0, drain_timeout_s=5.0),
    SleepEnded(host_used_bytes=7, now=3.0),
]


def test_model_sleeps_and_is_as_before_when_it_wakes() -> None:
    """Ours: `unloading` while its memory is on its way, then `sleeping`, `loading`, `loaded`."""
    statuses = []
    state: ReplicaState | None = None
    effects: list[object] = []
    for event in [*ASLEEP, WakeAsked(now=5.0), WakeEnded(now=5.5)]:
        after = step(state, event)
        state = after.state
        effects.extend(after.effects)
        statuses.append(state.status.value if state is not None else None)

    assert statuses == ["loading", "loaded", "unloading", "sleeping", "loading", "loaded"]
    assert effects[1:] == [StartSleep(level=1, drain_timeout_s=5.0), StartWake()]
    assert state is not None
    assert (state.load_s, state.wake_s, state.info) == (1.0, 0.5, INFO)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ([LoadAsked(spec=SPEC, now=0.0)], "is loading"),
        ([*LOADED, EngineDied(error="x", now=1.0)], "is failed"),
        ([*LOADED, UnloadAsked(now=1.0, drain_timeout_s=0)], "is unloading"),
        (
            [
                LoadAsked(spec=SPEC, now=0.0),
                LoadEnded(
                    info=ModelInfo(capabilities=Capabilities(chat=True), limit=Limit()), now=1.0
                ),
            ],
            "cannot sleep here",
        ),
        ([*LOADED, SleepAsked(level=2, now=1.0, drain_timeout_s=0)], "at level 2"),
    ],
)
def test_sleep_that_is_not_possible_is_refused_and_says_why(
    history: list[Event], words: str
) -> None:
    """Ours: 409, and nothing has changed."""
    state, _ = _run(history)

    after = step(state, SleepAsked(level=1, now=9.0, drain_timeout_s=0))

    assert after.state == state
    (refuse,) = after.effects
    assert isinstance(refuse, Refuse)
    assert words in refuse.error.message


def test_commands_for_a_model_that_sleeps_do_what_they_say() -> None:
    """Ours: the same sleep is done already, a load wakes, an unload closes."""
    state, _ = _run(ASLEEP)
    assert state is not None

    again = step(state, SleepAsked(level=1, now=9.0, drain_timeout_s=0))
    load = step(state, LoadAsked(spec=SPEC, now=9.0))
    other = step(state, LoadAsked(spec=msgspec.structs.replace(SPEC, quant="awq"), now=9.0))
    unload = step(state, UnloadAsked(now=9.0, drain_timeout_s=3.0))

    assert (again.state, again.effects) == (state, ())
    assert load.effects == (StartWake(),)
    assert isinstance(other.effects[0], Refuse)
    assert unload.effects == (StartUnload(drain_timeout_s=3.0),)
    assert unload.state is not None
    assert (unload.state.status, unload.state.is_falling_asleep) == (
        ReplicaStatus.UNLOADING,
        False,
    )


def test_waiting_for_memory_is_not_counted_as_loading() -> None:
    """Ours: whoever weighs a load against another wants to know what the model costs."""
    devices = (DeviceIndex(0),)
    history: list[Event] = [
        LoadAsked(spec=SPEC, now=0.0),
        LoadPlaced(devices=devices, now=10.0),
        LoadEnded(info=INFO, now=12.0),
        SleepAsked(level=1, now=20.0, drain_timeout_s=5.0),
        SleepEnded(host_used_bytes=7, now=21.0),
        WakeAsked(now=30.0),
        LoadPlaced(devices=devices, now=35.0),
        WakeEnded(now=35.5),
    ]

    state, _ = _run(history)

    assert state is not None
    assert (state.load_s, state.wake_s) == (2.0, 0.5)


def test_wake_that_finds_no_memory_leaves_the_model_asleep() -> None:
    """Ours: a refusal says nothing of the engine."""
    state, _ = _run([*ASLEEP, WakeAsked(now=5.0), WakeRefused(now=6.0)])

    assert state is not None
    assert (state.status, state.sleep_level) == (ReplicaStatus.SLEEPING, 1)
    assert state.host_used_bytes == 7


def test_engine_that_dies_asleep_is_gone_and_one_that_dies_waking_comes_back() -> None:
    """Ours: decision 28; what sleeps is wanted by nobody yet, what wakes is."""
    retry = Retry(attempt=Attempt(number=1, delay_s=1.0), at_epoch=6.0)
    died = EngineDied(error="no", now=6.0, retry=retry)

    asleep, closed = _run([*ASLEEP, died])
    waking, replaced = _run([*ASLEEP, WakeAsked(now=5.0), died])

    assert (asleep, closed[-1]) == (None, DisposeEngine(error="no"))
    assert waking is not None
    assert (waking.status, waking.sleep_level) == (ReplicaStatus.RECOVERING, None)
    assert replaced[-2:] == [DisposeEngine(error="no"), StartRecovery(attempt=retry.attempt)]


def test_unload_takes_over_from_a_sleep_and_a_wake_under_way() -> None:
    """Ours: what is no longer wanted is not finished first."""
    falling = [*LOADED, SleepAsked(level=1, now=2.0, drain_timeout_s=5.0)]
    for history in (falling, [*ASLEEP, WakeAsked(now=5.0)]):
        state, effects = _run([*history, UnloadAsked(now=6.0, drain_timeout_s=1.0)])

        assert state is not None
        assert effects[-1] == StartUnload(drain_timeout_s=1.0)
        late = step(state, SleepEnded(host_used_bytes=1, now=7.0))
        assert late.state == state
        assert step(state, WakeEnded(now=7.0)).state == state
        assert step(state, UnloadEnded()).state is None


def test_second_load_joins_the_first() -> None:
    """Ours: single flight per model."""
    _, effects = _run([LoadAsked(spec=SPEC, now=0.0)] * 20)

    assert effects == [StartLoad(spec=SPEC)]


def test_load_with_another_option_is_refused_and_names_it() -> None:
    """Ours: a differing spec never silently gets what is loaded."""
    other = msgspec.structs.replace(SPEC, engine={"max_model_len": 5})
    history: list[Event] = [LoadAsked(spec=SPEC, now=0.0), LoadEnded(info=INFO, now=1.0)]

    state, effects = _run([*history, LoadAsked(spec=other, now=2.0)])

    assert state is not None
    assert state.status is ReplicaStatus.LOADED
    assert isinstance(effects[-1], Refuse)
    assert "engine.max_model_len is None and 5 was asked for" in effects[-1].error.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"harness": "vllm"}, "harness"),
        ({"quant": "awq"}, "quant"),
        ({"devices": (1,)}, "devices"),
        ({"tensor_parallel": 2}, "tensor_parallel"),
        ({"pipeline_parallel": 2}, "pipeline_parallel"),
        ({"pipeline_parallel": 1}, None),
        ({"engine": {"seed": 1}}, "engine.seed"),
        ({"vram_bytes": 5}, None),
        ({"devices": (0,)}, None),
        ({"tensor_parallel": 1}, None),
    ],
)
def test_difference_names_what_differs(change: dict[str, object], words: str | None) -> None:
    """Ours: devices count when named, the estimate of memory never."""
    asked = msgspec.structs.replace(SPEC, **change)

    found = difference(asked, SPEC, (DeviceIndex(0),))

    assert (found is None) == (words is None)
    assert words is None or (found is not None and words in found)


def test_model_that_is_given_up_can_be_loaded_again() -> None:
    """Ours: reliability S9, a dead engine is `failed` and never the end of the model."""
    history: list[Event] = [
        LoadAsked(spec=SPEC, now=0.0),
        LoadEnded(info=INFO, now=1.0),
        EngineDied(error="out of memory", now=2.0),
    ]
    state, effects = _run(history)
    assert state is not None
    assert (state.status, state.error) == (ReplicaStatus.FAILED, "out of memory")
    assert effects[-1] == DisposeEngine(error="out of memory")

    again = step(state, LoadAsked(spec=SPEC, now=3.0))

    assert again.effects == (StartLoad(spec=SPEC),)


def test_unload_drains_before_it_closes() -> None:
    """Ours: the bound goes with the effect."""
    history: list[Event] = [LoadAsked(spec=SPEC, now=0.0), LoadEnded(info=INFO, now=1.0)]

    state, effects = _run([*history, UnloadAsked(now=2.0, drain_timeout_s=7.0)])

    assert state is not None
    assert state.status is ReplicaStatus.UNLOADING
    assert effects[-1] == StartUnload(drain_timeout_s=7.0)
