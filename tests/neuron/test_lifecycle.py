"""The pure rooms: the replica's life, the memory budget, the choice of devices, admission."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.device import Device
from cortex_core.errors import InsufficientVramError, InvalidRequestError
from cortex_core.harness import Capabilities, Limit, ModelInfo, ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.admission import refusal
from neuron.lifecycle.budget import Budget
from neuron.lifecycle.replica import (
    CancelLoad,
    DisposeEngine,
    EngineDied,
    Event,
    LoadAsked,
    LoadEnded,
    LoadFailed,
    LoadPlaced,
    LoadProgressed,
    Refuse,
    ReplicaState,
    RequestBegan,
    RequestEnded,
    StartLoad,
    StartUnload,
    UnloadAsked,
    UnloadEnded,
    difference,
    step,
)
from neuron.lifecycle.selection import select_devices

MODEL = ModelId("org/model")
SPEC = ModelSpec(model=MODEL, harness="simulated")
INFO = ModelInfo(capabilities=Capabilities(chat=True), limit=Limit(context=10))

specs = st.builds(
    ModelSpec,
    model=st.just(MODEL),
    harness=st.sampled_from(["simulated", "vllm"]),
    quant=st.sampled_from([None, "awq"]),
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(LoadAsked, spec=specs, now=st.just(1.0)),
    st.builds(LoadPlaced, devices=st.just((DeviceIndex(0),))),
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
    st.builds(UnloadEnded),
    st.builds(EngineDied, error=st.just("dead"), now=st.just(5.0)),
    st.builds(RequestBegan),
    st.builds(RequestEnded, now_epoch=st.just(6.0)),
)

sizes = st.integers(0, 64)
nodes = st.lists(st.integers(0, 64), max_size=6).map(
    lambda totals: tuple(
        Device(index=DeviceIndex(number), name="d", vram_total_bytes=total)
        for number, total in enumerate(totals)
    )
)


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
    state = None
    for event in history:
        if state is not None and state.status is ReplicaStatus.LOADING:
            if isinstance(event, LoadEnded):
                engines, loads = engines + 1, loads - 1
            if isinstance(event, LoadFailed):
                loads -= 1
        if isinstance(event, UnloadEnded) and state is not None:
            engines = 0 if state.status is ReplicaStatus.UNLOADING else engines
        after = step(state, event)
        for effect in after.effects:
            loads += isinstance(effect, StartLoad)
            loads -= isinstance(effect, CancelLoad)
            engines -= isinstance(effect, DisposeEngine)
        state = after.state

        assert loads in (0, 1)
        assert engines in (0, 1)
        assert loads + engines <= 1
        status = state.status if state is not None else None
        assert (loads == 1) == (status is ReplicaStatus.LOADING)
        if status is ReplicaStatus.LOADED:
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


def test_dead_engine_is_disposed_of_and_the_model_can_be_loaded_again() -> None:
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


def test_progress_tells_the_time_that_is_left() -> None:
    """Ours: linear in bytes."""
    placed: list[Event] = [LoadAsked(spec=SPEC, now=0.0)]
    progress = LoadProgressed(stage="weights", done_bytes=25, total_bytes=100, now=10.0)

    state, _ = _run([*placed, progress])

    assert state is not None
    assert state.progress is not None
    assert state.progress.eta_s == 30.0


@given(nodes, st.lists(st.tuples(sizes, st.integers(1, 3), st.booleans()), max_size=12))
def test_budget_never_gives_more_than_a_device_has(
    devices: tuple[Device, ...], wishes: list[tuple[int, int, bool]]
) -> None:
    """Ours: the sum of what is held fits on every device of known size."""
    budget = Budget.from_devices(devices)
    for number, (size, parallel, is_released) in enumerate(wishes):
        model = ModelId(f"m{number}")
        spec = ModelSpec(model=model, harness="h", tensor_parallel=parallel, vram_bytes=size)
        try:
            chosen = select_devices(spec, devices, budget)
        except (InsufficientVramError, InvalidRequestError):
            continue
        budget = budget.with_reserved(model, chosen, size)
        if is_released:
            budget = budget.with_released(model)
    for device in devices:
        if device.vram_total_bytes:
            assert budget.held_bytes(device.index) <= device.vram_total_bytes


@given(nodes, sizes, st.integers(1, 3))
def test_model_that_fits_somewhere_is_placed(
    devices: tuple[Device, ...], size: int, parallel: int
) -> None:
    """Ours: as many different devices as wanted, and a refusal only when there is no way."""
    spec = ModelSpec(model=MODEL, harness="h", tensor_parallel=parallel, vram_bytes=size)
    budget = Budget.from_devices(devices)
    share = -(-size // parallel)
    roomy = [d for d in devices if not d.vram_total_bytes or d.vram_total_bytes >= share]
    try:
        chosen = select_devices(spec, devices, budget)
    except InvalidRequestError:
        assert 0 < len(devices) < parallel
    except InsufficientVramError:
        assert len(roomy) < parallel
    else:
        assert len(set(chosen)) == (parallel if devices else 0)
        assert not devices or len(roomy) >= parallel


def test_node_without_devices_takes_every_model() -> None:
    """Ours: CPU hosts have no memory check."""
    spec = msgspec.structs.replace(SPEC, vram_bytes=1 << 60, tensor_parallel=2)

    assert select_devices(spec, (), Budget()) == ()


def test_fullest_device_that_has_room_is_chosen() -> None:
    """Ours: the emptiest stays free for larger models."""
    devices = tuple(
        Device(index=DeviceIndex(number), name="d", vram_total_bytes=total)
        for number, total in enumerate((100, 30, 50))
    )
    spec = msgspec.structs.replace(SPEC, vram_bytes=40)

    assert select_devices(spec, devices, Budget.from_devices(devices)) == (2,)


def test_measured_memory_takes_the_place_of_the_estimate() -> None:
    """Ours: reserved, then measured, then released."""
    device = DeviceIndex(0)
    budget = Budget(totals={device: 100}).with_reserved(MODEL, (device,), 60)
    assert budget.free_bytes(device) == 40

    budget = budget.with_measured(MODEL, 70)

    assert budget.free_bytes(device) == 30
    assert budget.with_measured(MODEL, None).free_bytes(device) == 30
    assert budget.with_released(MODEL).free_bytes(device) == 100
