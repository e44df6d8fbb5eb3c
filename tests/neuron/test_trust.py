"""Devices on which every engine fails, and a daemon that begins anew."""

import pathlib
from collections.abc import Sequence

import msgspec
from hypothesis import given, strategies as st

from cortex_core.device import DeviceCondition, DeviceReading
from cortex_core.ids import DeviceIndex, ModelId
from neuron.lifecycle.notes import Notes
from neuron.lifecycle.trust import (
    HOUR_S,
    LOST_AFTER,
    LOST_BY,
    Trust,
    distrusted,
    may_start_afresh,
)
from tests.neuron.conftest import Start

FIRST = DeviceIndex(0)
MODELS = [ModelId(name) for name in "abc"]
CUDA = "CUDA error: an illegal memory access was encountered"

_outcomes = st.lists(st.none() | st.sampled_from(MODELS))
"""Of engines one after the other: up, or failed with a CUDA error."""


@given(_outcomes)
def test_a_device_is_lost_by_several_models_in_a_row(outcomes: Sequence[ModelId | None]) -> None:
    trust = Trust()
    for model in outcomes:
        trust = trust.with_success([FIRST]) if model is None else trust.with_failure([FIRST], model)
    row: list[ModelId] = []
    for outcome in reversed(outcomes):
        if outcome is None:
            break
        row.append(outcome)

    recent = set(row[: LOST_AFTER * LOST_BY])
    assert (FIRST in trust.lost()) is (len(row) >= LOST_AFTER and len(recent) >= LOST_BY)


@given(st.sampled_from(DeviceCondition), st.booleans())
def test_only_a_device_that_seems_well_is_called_poisoned(
    condition: DeviceCondition, is_lost: bool
) -> None:
    reading = DeviceReading(index=FIRST, condition=condition, condition_reason="as it was")
    (found,) = distrusted([reading], {FIRST: "engines fail"} if is_lost else {})

    if is_lost and condition.is_usable:
        assert (found.condition, found.condition_reason) == (
            DeviceCondition.POISONED,
            "engines fail",
        )
    else:
        assert found == reading


@given(st.lists(st.floats(0, 1e5)), st.floats(0, 1e5), st.integers(0, 5))
def test_fresh_starts_are_bounded_in_every_hour(past: list[float], now: float, most: int) -> None:
    taken: list[float] = []
    for at in sorted([*past, now]):
        if may_start_afresh(taken, at, most):
            taken.append(at)

    assert all(
        sum(abs(at - other) < HOUR_S for other in taken if other <= at) <= most for at in taken
    )


def test_notes_of_fresh_starts_do_not_grow_without_end() -> None:
    notes = Notes()
    for at in range(500):
        notes = notes.with_fresh_start(float(at))

    assert len(notes.fresh_starts) == 100
    assert msgspec.json.decode(msgspec.json.encode(notes), type=Notes) == notes


async def test_daemon_begins_anew_where_every_engine_fails_and_no_more_often_than_it_may(
    start: Start, tmp_path: pathlib.Path
) -> None:
    """Issue: if only a fresh process can heal it, the daemon restarts itself, bounded per hour."""
    fault = {"fail_to_load": True, "reason": CUDA}
    table = {
        "simulated": {"vram_mb": {"ok": 100}, "faults": {"a": fault, "b": fault}},
        "state_path": str(tmp_path / "state.json"),
        "fresh_starts_per_hour": 1,
        "drain_timeout_s": 0,
        "devices": [{"index": n, "name": "SIM", "vram_total_mb": 1000} for n in range(2)],
    }

    spec = {"harness": "simulated", "devices": [0], "vram_mb": 10}

    async with start(**table) as neuron:
        await neuron.load("ok", devices=[1])
        for model in ("a", "a", "b"):
            status, body, _ = await neuron.post("/models/load", {**spec, "model_id": model})
            assert (status, CUDA in body["error"]["message"]) == (503, True)
        await neuron.shutdown.is_wanted.wait()

    async with start(**table) as neuron:
        await neuron.load("ok", devices=[1])
        for model in ("a", "b", "a"):
            await neuron.post("/models/load", {**spec, "model_id": model})
        health = await neuron.until(lambda health: health["devices"][0]["condition"] == "poisoned")
        refused = await neuron.post("/models/load", {**spec, "model_id": "other"})
        models = await neuron.get("/models")
        is_wanted = neuron.shutdown.is_wanted.is_set()

    reason = "3 engines in a row failed there with CUDA errors"
    assert health["devices"][0]["condition_reason"] == reason
    assert health["devices"][1]["condition"] != "poisoned"
    assert (refused[0], reason in refused[1]["error"]["message"]) == (503, True)
    assert [model["status"] for model in models if model["id"] == "ok"] == ["loaded"]
    assert not is_wanted


async def test_daemon_that_keeps_nothing_goes_on(start: Start) -> None:
    """Ours: it could not count how often it has begun anew."""
    fault = {"fail_to_load": True, "reason": CUDA}
    async with start(simulated={"faults": {"a": fault, "b": fault}}) as neuron:
        for model in ("a", "b", "a"):
            await neuron.post("/models/load", {"model_id": model, "harness": "simulated"})
        await neuron.until(lambda health: health["devices"][0]["condition"] == "poisoned")
        assert not neuron.shutdown.is_wanted.is_set()
