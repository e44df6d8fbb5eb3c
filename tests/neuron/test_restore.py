"""What was loaded comes back after a restart."""

import json
import pathlib
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from cortex_core.server.clock import SystemClock
from neuron.lifecycle.notes import Notes
from neuron.lifecycle.replica import ReplicaState
from neuron.lifecycle.restoring import residents, to_restore
from tests.neuron.conftest import RunningNeuron, Start

MODELS = [ModelId(name) for name in "abcd"]

_specs = st.builds(ModelSpec, model=st.sampled_from(MODELS), harness=st.just("simulated"))
_unique_specs = st.lists(_specs, unique_by=lambda spec: spec.model).map(tuple)
_states = st.lists(
    st.builds(
        ReplicaState,
        asked=_specs,
        status=st.sampled_from(ReplicaStatus),
        since=st.just(0.0),
        last_used=st.none() | st.floats(0, 1e9),
    ),
    unique_by=lambda state: state.asked.model,
)

SIZES = dict.fromkeys(("a", "b", "gone", "sleeper", "first", "broken"), 100)

_BACK = {ReplicaStatus.LOADED, ReplicaStatus.RECOVERING}


@given(_states, _unique_specs)
def test_residents_are_what_serves_then_what_is_still_to_come(
    states: Sequence[ReplicaState], still_wanted: tuple[ModelSpec, ...]
) -> None:
    found = residents(states, still_wanted)
    here = {state.asked.model: state for state in states if state.status in _BACK}

    assert len({spec.model for spec in found}) == len(found)
    assert {spec.model for spec in found} == {*here, *(spec.model for spec in still_wanted)}
    used = [here[spec.model].last_used or 0.0 for spec in found[: len(here)]]
    assert used == sorted(used, reverse=True)


@given(_unique_specs, _unique_specs)
def test_what_is_loaded_is_noted_once_in_whatever_order(
    first: tuple[ModelSpec, ...], second: tuple[ModelSpec, ...]
) -> None:
    notes = Notes().with_loaded(first)

    assert notes.with_loaded(tuple(reversed(first))) is notes
    assert sorted(notes.with_loaded(second).loaded, key=str) == sorted(second, key=str)


@given(_unique_specs, st.lists(st.sampled_from(MODELS)))
def test_models_of_the_settings_are_loaded_as_those_want_them(
    remembered: tuple[ModelSpec, ...], named: list[ModelId]
) -> None:
    assert to_restore(remembered, named) == tuple(s for s in remembered if s.model not in named)


async def _completed(neuron: RunningNeuron) -> list[str]:
    health = await neuron.until(lambda health: health["activation"]["state"] == "ready")
    completed: list[str] = health["activation"]["completed"]
    return completed


def _noted(path: pathlib.Path) -> list[str]:
    return [spec["model"] for spec in json.loads(path.read_bytes())["loaded"]]


async def test_what_was_loaded_is_loaded_again_the_latest_used_first(
    start: Start, tmp_path: pathlib.Path
) -> None:
    """Issue: what was loaded is remembered and can be restored at the next start."""
    state = tmp_path / "state.json"
    simulated = {"sleep_s": 0, "wake_s": 0, "vram_mb": SIZES}
    table = {"simulated": simulated, "state_path": str(state), "restore": True}
    async with start(**table) as neuron:
        for model in ("a", "b", "gone", "sleeper"):
            await neuron.load(model, engine={"max_model_len": 100})
        await neuron.post("/models/unload", {"model_id": "gone"})
        await neuron.post("/models/sleep", {"model_id": "sleeper"})
        chat = {"model": "b", "messages": [{"role": "user", "content": "x"}]}
        assert (await neuron.post("/v1/chat/completions", chat))[0] == 200
        assert (await neuron.post("/cordon", {}))[0] == 200
    noted = _noted(state)

    async with start(**table) as neuron:
        await _completed(neuron)
    # Twice: the list is still whole after a start that brought it back.
    async with start(**table) as neuron:
        completed = await _completed(neuron)
        limits = [(await neuron.model(model))["limit"]["context"] for model in ("a", "b")]
        models = await neuron.get("/models")

    assert sorted(noted) == ["a", "b"]
    assert sorted(completed) == ["a", "b"]
    assert [model["id"] for model in models] == completed
    assert limits == [100, 100]


async def test_nothing_is_restored_unless_it_is_asked_for(
    start: Start, tmp_path: pathlib.Path
) -> None:
    state = str(tmp_path / "state.json")
    async with start(state_path=state, restore=True) as neuron:
        await neuron.load("a")
    async with start(state_path=state) as neuron:
        assert await _completed(neuron) == []
        assert await neuron.get("/models") == []


async def test_default_models_go_first_and_a_failure_stops_nothing(
    start: Start, tmp_path: pathlib.Path
) -> None:
    """Ours: what cannot be loaded any more is named, and the rest is brought back."""
    state = str(tmp_path / "state.json")
    table = {"state_path": state, "restore": True}
    async with start(**table, simulated={"vram_mb": SIZES}) as neuron:
        for model in ("a", "broken", "first"):
            await neuron.load(model)
    default = [{"model_id": "first", "harness": "simulated", "engine": {"max_model_len": 50}}]
    broken = {"vram_mb": SIZES, "faults": {"broken": {"fail_to_load": True}}}
    async with start(**table, default_models=default, simulated=broken) as neuron:
        completed = await _completed(neuron)
        failed = (await neuron.get("/health"))["activation"]["failed"]
        limit = (await neuron.model("first"))["limit"]["context"]

    assert completed == ["first", "a"]
    assert [failure["model_id"] for failure in failed] == ["broken"]
    assert limit == 50


@pytest.mark.parametrize("written", [b"{}", b'{"loaded": 3}', b"no json"])
async def test_a_state_file_without_them_restores_nothing(
    start: Start, tmp_path: pathlib.Path, written: bytes
) -> None:
    """Ours: of an older version, or broken."""
    state = tmp_path / "state.json"
    state.write_bytes(written)
    async with start(state_path=str(state), restore=True) as neuron:
        assert await _completed(neuron) == []


async def test_what_was_given_up_is_not_restored_at_once(
    start: Start, tmp_path: pathlib.Path
) -> None:
    """Ours: a restart is nobody who asks in person."""
    spec = ModelSpec(model=ModelId("a"), harness="simulated", vram_bytes=1 << 20)
    notes = Notes().with_loaded((spec,)).with_given_up(spec, "CUDA error", SystemClock().wall())
    path = tmp_path / "state.json"
    path.write_bytes(msgspec.json.encode(notes))

    async with start(state_path=str(path), restore=True) as neuron:
        health = await neuron.until(lambda health: health["activation"]["state"] == "ready")
        await neuron.load("a", vram_mb=1)

    (failed,) = health["activation"]["failed"]
    assert failed["model_id"] == "a"
    assert "failed too often" in failed["error"]
    assert "CUDA error" in failed["error"]
