"""What a neuron keeps: pins, the cordon, and what loads came to."""

import asyncio
import json
import os
import pathlib

import msgspec
import pytest
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry

from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from neuron.lifecycle.notes import MAX_EXPERIENCES, Experience, Notes, fingerprint
from neuron.metrics import NeuronMetrics
from neuron.supervisor.notebook import Notebook, notes_path
from tests.neuron.bench import Bench
from tests.neuron.conftest import Start

A, B = ModelId("a"), ModelId("b")
SPEC = ModelSpec(model=A, harness="h", engine={"max_model_len": 5, "seed": 1})

models = st.sampled_from([A, B])
experiences = st.builds(
    Experience,
    model=models,
    fingerprint=st.sampled_from(["x", "y"]),
    vram_bytes=st.none() | st.integers(1, 9),
    load_s=st.none() | st.floats(0, 9),
    wake_s=st.none() | st.floats(0, 9),
)


@given(st.lists(st.tuples(models, st.booleans())))
def test_last_word_on_a_pin_counts(words: list[tuple[ModelId, bool]]) -> None:
    """Ours: idempotent, in any order, without duplicates."""
    notes = Notes()
    for model, is_pinned in words:
        notes = notes.with_pin(model, is_pinned)

    assert set(notes.pinned) == {model for model, is_pinned in dict(words).items() if is_pinned}
    assert len(notes.pinned) == len(set(notes.pinned))


@given(st.lists(experiences, max_size=12))
def test_what_is_not_known_anew_stays_known(history: list[Experience]) -> None:
    """Ours: a wake says nothing of the memory, so it takes nothing away."""
    notes = Notes()
    for entry in history:
        notes = notes.with_experience(entry)

    keys = [(entry.model, entry.fingerprint) for entry in notes.experiences]
    assert len(keys) == len(set(keys))
    for entry in notes.experiences:
        mine = [e for e in history if (e.model, e.fingerprint) == (entry.model, entry.fingerprint)]
        for name in ("vram_bytes", "load_s", "wake_s"):
            told = [getattr(e, name) for e in mine if getattr(e, name) is not None]
            assert getattr(entry, name) == (told[-1] if told else None)
    if history:
        last = history[-1]
        assert notes.latest()[last.model].fingerprint == last.fingerprint


def test_notes_do_not_grow_without_end() -> None:
    """Ours: the oldest experience goes first."""
    notes = Notes()
    for number in range(MAX_EXPERIENCES + 1):
        notes = notes.with_experience(Experience(model=ModelId(f"m{number}"), fingerprint="x"))

    assert len(notes.experiences) == MAX_EXPERIENCES
    assert notes.experiences[0].model == "m1"


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"engine": {"seed": 1, "max_model_len": 5}}, True),
        ({"vram_bytes": 7}, True),
        ({"devices": (DeviceIndex(3),)}, True),
        ({"tensor_parallel": 1}, True),
        ({"tensor_parallel": 2}, False),
        ({"pipeline_parallel": 1}, True),
        ({"pipeline_parallel": 2}, False),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, False),
        ({"devices": (DeviceIndex(0), DeviceIndex(1))}, False),
        ({"quant": "awq"}, False),
        ({"engine": {"max_model_len": 6, "seed": 1}}, False),
    ],
)
def test_fingerprint_tells_apart_what_holds_other_memory(
    change: dict[str, object], is_same: bool
) -> None:
    """Ours: options count, their order and the estimate do not."""
    other = msgspec.structs.replace(SPEC, **change)

    assert (fingerprint(other) == fingerprint(SPEC)) is is_same


@pytest.mark.parametrize(
    ("setting", "environ", "path"),
    [
        (None, {}, None),
        (None, {"STATE_DIRECTORY": "/var/lib/neuron"}, "/var/lib/neuron/state.json"),
        (None, {"STATE_DIRECTORY": "/one:/two"}, "/one/state.json"),
        ("/other.json", {"STATE_DIRECTORY": "/var/lib/neuron"}, "/other.json"),
    ],
)
def test_setting_goes_before_systemd_s_folder(
    setting: str | None, environ: dict[str, str], path: str | None
) -> None:
    """systemd.exec(5): a list with colons."""
    assert notes_path(setting, environ) == (None if path is None else pathlib.Path(path))


async def test_file_that_cannot_be_read_is_set_aside(tmp_path: pathlib.Path) -> None:
    """Ours: the neuron starts, and nobody's work is destroyed."""
    path = tmp_path / "state.json"
    path.write_text('{"pinned": 5}')
    notebook = Notebook(path, NeuronMetrics(CollectorRegistry()))

    await notebook.read()
    notebook.change(notebook.notes.with_cordon(True))
    await notebook.flush()

    assert (tmp_path / "state.json.broken").read_text() == '{"pinned": 5}'
    assert json.loads(path.read_text())["is_cordoned"] is True
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.broken"]


async def test_disk_that_cannot_be_written_is_counted_and_nothing_else(
    tmp_path: pathlib.Path,
) -> None:
    """Ours: the marks hold until the neuron ends."""
    registry = CollectorRegistry()
    (tmp_path / "file").touch()
    notebook = Notebook(tmp_path / "file" / "state.json", NeuronMetrics(registry))

    await notebook.read()
    notebook.change(notebook.notes.with_cordon(True))
    await notebook.flush()

    assert notebook.notes.is_cordoned
    assert registry.get_sample_value("neuron_state_write_failures_total") == 1.0


async def test_marks_and_measures_outlive_the_neuron(start: Start, tmp_path: pathlib.Path) -> None:
    """Ours: a restarted gateway adopts them, and so does a restarted neuron."""
    state = str(tmp_path / "folder" / "state.json")
    simulated = {"vram_mb": {"a": 600}, "sleep_s": 0, "wake_s": 0}
    async with start(simulated=simulated, state_path=state) as neuron:
        await neuron.load("a")
        assert (await neuron.post("/models/sleep", {"model_id": "a"}))[0] == 200
        assert (await neuron.post("/models/wake", {"model_id": "a"}))[0] == 200
        for _ in range(2):
            answer = await neuron.post("/models/pin", {"model_id": "a"})
            assert answer[:2] == (200, {"status": "pinned"})
            answer = await neuron.post("/cordon", {})
            assert answer[:2] == (200, {"status": "cordoned"})
        assert (await neuron.model("a"))["pinned"] is True
        before = await neuron.get("/health")

    async with start(simulated=simulated, state_path=state) as neuron:
        health = await neuron.get("/health")
        refused = await neuron.post("/models/load", {"model_id": "a", "harness": "simulated"})
        freed = await neuron.post("/cordon", {"cordoned": False})
        await neuron.load("a")
        report = await neuron.model("a")
        unpinned = await neuron.post("/models/pin", {"model_id": "a", "pinned": False})
        after = await neuron.model("a")

    assert before["cordoned"] is health["cordoned"] is True
    assert health["measured"] == before["measured"]
    (measured,) = health["measured"]
    assert (measured["id"], measured["vram_mb"]) == ("a", 600)
    assert measured["load_s"] > 0
    assert measured["wake_s"] is not None
    assert (refused[0], refused[1]["error"]["code"]) == (409, "cordoned")
    assert freed[1] == {"status": "uncordoned"}
    assert unpinned[1] == {"status": "unpinned"}
    assert (report["pinned"], after["pinned"]) == (True, False)


async def test_cordoned_neuron_serves_and_wakes_what_it_has(start: Start) -> None:
    """Ours: only what is not here is refused."""
    async with start(simulated={"sleep_s": 0, "wake_s": 0}) as neuron:
        await neuron.load("a")
        await neuron.post("/cordon", {})

        await neuron.load("a")
        await neuron.post("/models/sleep", {"model_id": "a", "level": 2})
        await neuron.load("a")
        status, _, _ = await neuron.post(
            "/v1/chat/completions",
            {"model": "a", "messages": [{"role": "user", "content": "x"}]},
        )
        refused, _, _ = await neuron.post("/models/load", {"model_id": "b", "harness": "simulated"})

    assert (status, refused) == (200, 409)


async def test_pin_is_told_to_who_listens(start: Start) -> None:
    """Ours: an event, without which gateways would learn of it late."""
    async with start() as neuron:
        await neuron.load("a")
        async with asyncio.timeout(5):
            events = neuron.events()
            await anext(events)
            await neuron.post("/models/pin", {"model_id": "a"})
            async for event in events:
                if event.event == "model" and json.loads(event.data)["pinned"]:
                    break
            await events.aclose()


async def test_load_reserves_what_an_earlier_one_held(bench: Bench) -> None:
    """Ours: measured goes before the estimate, whichever is larger; the engine is told the larger."""
    bench.harness.measured_bytes = 30
    await bench.load(A, 50)
    await bench.supervisor.unload(A, 0)
    bench.harness.may_load.clear()

    load = bench.tasks.create_task(bench.load(A, 50))
    await bench.clock.advance(0)
    reserved = bench.held()
    bench.harness.may_load.set()
    await load

    assert reserved == [30, 0]
    assert [spec.vram_bytes for spec in bench.harness.specs] == [50, 50]
    assert bench.notebook.notes.vram_bytes(bench.supervisor.state(A).asked) == 30
