"""The whole daemon over scripted drivers: machines as they are, and what becomes of them.

What happens to them is scripted. Engines are simulated, so nothing here says anything of CUDA.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from neuron.devices.nvml import NvmlSource
from tests.fakes.machines import SHAPES, Shape, card_of, l4
from tests.fakes.nvml import (
    GIB,
    FakeCard,
    FakeNvml,
    NVMLError,
    NVMLError_DriverNotLoaded,
    NVMLError_LibraryNotFound,
    NVMLError_LibRmVersionMismatch,
    NVMLError_NoPermission,
)
from tests.neuron.conftest import PATIENCE_S, RunningNeuron, Start


@contextlib.asynccontextmanager
async def machine(
    start: Start, cards: list[FakeCard], *, has_nvlink: bool = False, reading_s: float = 0.05
) -> AsyncIterator[tuple[RunningNeuron, FakeNvml]]:
    """Run a neuron on a machine with these cards."""
    nvml = FakeNvml(cards, has_nvlink=has_nvlink)
    source = NvmlSource(nvml)
    try:
        async with start(source=source, devices=[], reading_interval_s=reading_s) as neuron:
            yield neuron, nvml
    finally:
        # Whatever hangs in it may end with the test.
        nvml.may_answer.set()


async def health_of(neuron: RunningNeuron) -> Any:
    """Return `/health`, which must not wait for anything."""
    async with asyncio.timeout(PATIENCE_S):
        return await neuron.get("/health")


async def until_condition(neuron: RunningNeuron, device: int, condition: str) -> Any:
    """Return the device's health as the first event has it that shows this condition."""
    health = await neuron.until(lambda health: health["devices"][device]["condition"] == condition)
    return health["devices"][device]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
async def test_machine_is_shown_as_it_is(start: Start, shape: Shape) -> None:
    """Issue 5: it must hold on any machine; a missing field is unknown and loses no other."""
    # So seldom that a busy machine does not make the reading of the start too old to be shown.
    starting = machine(start, shape.cards(), has_nvlink=shape.has_nvlink, reading_s=10)
    async with starting as (neuron, _):
        found = await neuron.get("/discovery")
        health = await health_of(neuron)
        text = await (await neuron.session.get(neuron.url + "/metrics")).text()

    sizes = [device["vram_total_mb"] for device in found["devices"]]
    assert sizes == [None if size is None else size << 10 for size in shape.sizes_gib]
    assert found["cuda_unavailable_reason"] is None
    assert [device["condition"] for device in health["devices"]] == ["ok"] * len(sizes)
    assert [device["index"] for device in health["devices"]] == list(range(len(sizes)))
    for device in health["devices"]:
        name = f'neuron_device_condition{{condition="ok",device="{device["index"]}"}}'
        assert f"{name} 1.0" in text
        # What the driver does not say has no series, as a 0 would be a lie.
        temperature = f'neuron_device_temperature_celsius{{device="{device["index"]}"}}'
        assert (temperature in text) == (device["temp_c"] is not None)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
async def test_model_is_loaded_beside_others_and_unloaded(start: Start, shape: Shape) -> None:
    """Issue 5: the ledger, the driver and the reports agree at every step."""
    cards = shape.cards()
    async with machine(start, cards, reading_s=1) as (neuron, _):
        await neuron.load("a", vram_mb=1 << 10)
        (device,) = (await neuron.model("a"))["devices"]
        held = card_of(cards, device)
        held.used = GIB
        await neuron.load("b", vram_mb=0)
        held.frees = GIB // 20
        status, _, _ = await neuron.post("/models/unload", {"model_id": "a"})
        left = await neuron.get("/models")
        health = await health_of(neuron)

    assert status == 200
    assert [model["id"] for model in left] == ["b"]
    assert health["devices"][device]["condition"] == "ok"
    assert health["devices"][device]["busy_with"] is None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
async def test_group_of_devices_is_taken_where_there_are_enough_alike(
    start: Start, shape: Shape
) -> None:
    """Ours: unlike cards, and a slice beside a card, share no model unless they are named."""
    async with machine(start, shape.cards(), has_nvlink=shape.has_nvlink) as (neuron, _):
        body = {"model_id": "wide", "harness": "simulated", "vram_mb": 0}
        fitting, _, _ = await neuron.post("/models/load", {**body, "tensor_parallel": shape.alike})
        report = await neuron.model("wide")
        too_wide, answer, _ = await neuron.post(
            "/models/load", {**body, "model_id": "wider", "tensor_parallel": shape.alike + 1}
        )

    assert fitting == 200
    assert len(report["devices"]) == shape.alike
    assert too_wide == 400
    assert "alike" in answer["error"]["message"] or "needs" in answer["error"]["message"]


async def test_memory_of_strangers_is_shown_and_named_when_a_load_is_refused(
    start: Start,
) -> None:
    """Ours: it is what makes loads fail that worked yesterday, and no engine shows it."""
    card = l4()
    card.used, card.processes = 20 * GIB, {4711: 20 * GIB}
    async with machine(start, [card]) as (neuron, _):
        health = await neuron.until(lambda health: health["devices"][0]["other_mb"] == 20 << 10)
        status, answer, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated", "vram_mb": 8 << 10}
        )

    assert health["devices"][0]["processes"] == [{"pid": 4711, "used_mb": 20 << 10, "model": None}]
    assert status == 507
    assert "other processes use 20480 MiB" in answer["error"]["message"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens to a card while a model serves on it."""

    happens: Callable[[FakeNvml, FakeCard], None]
    condition: str
    words: str
    is_over: Callable[[FakeNvml, FakeCard], None] | None = None
    """How it ends without a restart of the daemon; `None` is not at all."""


def _set(**changes: object) -> Callable[[FakeNvml, FakeCard], None]:
    def change(nvml: FakeNvml, card: FakeCard) -> None:
        for name, value in changes.items():
            setattr(card, name, value)

    return change


def _xid(number: int) -> Callable[[FakeNvml, FakeCard], None]:
    return lambda nvml, card: nvml.xid(card, number)


FAULTS = {
    "too hot": Fault(
        happens=_set(clock_reasons=0x040),
        condition="degraded",
        words="hardware_thermal",
        is_over=_set(clock_reasons=0),
    ),
    "rows to remap": Fault(
        happens=_set(rows=(0, 1, 1, 0)), condition="degraded", words="at the next reset"
    ),
    "NVLink error": Fault(happens=_xid(74), condition="degraded", words="Xid 74"),
    "reset required": Fault(
        happens=_set(needs_reset=True),
        condition="poisoned",
        words="has to be reset",
        is_over=_set(needs_reset=False),
    ),
    "recovery action": Fault(
        happens=_set(recovery_action=1),
        condition="poisoned",
        words="needs a reset",
        is_over=_set(recovery_action=0),
    ),
    "uncontained error": Fault(happens=_xid(95), condition="poisoned", words="Xid 95"),
    "firmware does not answer": Fault(happens=_xid(119), condition="poisoned", words="Xid 119"),
    "off the bus": Fault(happens=_xid(79), condition="gone", words="Xid 79"),
    "lost": Fault(
        happens=_set(is_lost=True),
        condition="gone",
        words="does not reach it",
        is_over=_set(is_lost=False),
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_fault_of_one_card_is_a_matter_of_that_card(start: Start, fault: Fault) -> None:
    """Issue 5: `poisoned`: its models move to `failed`, other devices go on."""
    cards = [l4(0), l4(1)]
    is_usable = fault.condition == "degraded"
    async with machine(start, cards) as (neuron, nvml):
        await neuron.load("on 0", devices=[0], vram_mb=0)
        await neuron.load("on 1", devices=[1], vram_mb=0)
        await _until_listened_to(nvml, 2)
        fault.happens(nvml, cards[0])
        device = await until_condition(neuron, 0, fault.condition)
        if not is_usable:
            robbed = "failed" if fault.condition == "poisoned" else "recovering"
            await _until_status(neuron, "on 0", lambda status: status == robbed)
        bystander = await neuron.model("on 1")
        status, answer, _ = await neuron.post(
            "/models/load",
            {"model_id": "new", "harness": "simulated", "devices": [0], "vram_mb": 0},
        )
        await neuron.load("anywhere", vram_mb=0)
        placed = await neuron.model("anywhere")
        other = (await health_of(neuron))["devices"][1]
        if fault.is_over is not None:
            fault.is_over(nvml, cards[0])
            await until_condition(neuron, 0, "ok")
            await neuron.load("again", devices=[0], vram_mb=0)

    assert fault.words in device["condition_reason"]
    assert bystander["status"] == "loaded"
    assert other["condition"] == "ok"
    if is_usable:
        assert status == 200
    else:
        assert status == 503
        assert fault.condition in answer["error"]["message"]
        assert placed["devices"] == [1]


async def _until_listened_to(nvml: FakeNvml, cards: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        # The fake is asked from a thread, which no event of the loop's tells of.
        while len(nvml.registered) < cards:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _until_status(neuron: RunningNeuron, model: str, holds: Callable[[str], bool]) -> None:
    await neuron.until(
        lambda health: any(one["id"] == model and holds(one["status"]) for one in health["models"])
    )


@pytest.mark.parametrize("processes", [{}, {4711: GIB}], ids=["nobody known", "a stranger"])
async def test_fault_of_some_program_ends_no_engine_that_is_not_known_to_be_it(
    start: Start, processes: dict[int, int | None]
) -> None:
    """Ours: Xid 31 does not say whose it was; the engine that it hit ends by itself."""
    card = l4()
    card.processes = processes
    async with machine(start, [card]) as (neuron, nvml):
        await neuron.load("a", vram_mb=0)
        await _until_listened_to(nvml, 1)
        nvml.xid(card, 31)
        health = await neuron.until(lambda health: health["devices"][0]["xids"] == [31])
        model = await neuron.model("a")

    assert health["devices"][0]["condition"] == "ok"
    assert model["status"] == "loaded"


async def test_cards_are_used_again_after_the_driver_was_loaded_anew(start: Start) -> None:
    """Issue 5: changes, such as a driver reload, are noticed."""
    cards = [l4(0), l4(1)]
    async with machine(start, cards) as (neuron, nvml):
        nvml.init_error = NVMLError_DriverNotLoaded("Driver Not Loaded")
        nvml.reload()
        gone = await until_condition(neuron, 1, "gone")
        status, _, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated", "vram_mb": 0}
        )
        nvml.init_error = None
        await until_condition(neuron, 1, "ok")
        await neuron.load("a", vram_mb=0)

    assert gone["temp_c"] is None
    assert status == 503


async def test_card_that_was_removed_comes_back_under_its_number(start: Start) -> None:
    """Issue 5: hot removal; the cards beside it keep their numbers and serve."""
    cards = [l4(0), l4(1)]
    async with machine(start, cards) as (neuron, nvml):
        await neuron.load("stays", devices=[1], vram_mb=0)
        removed = nvml.cards.pop(0)
        removed.is_lost = True
        await until_condition(neuron, 0, "gone")
        health = await health_of(neuron)
        nvml.cards.append(l4(0))
        await until_condition(neuron, 0, "ok")
        stays = await neuron.model("stays")
        await neuron.load("back", devices=[0], vram_mb=0)

    assert health["devices"][1]["condition"] == "ok"
    assert stays["status"] == "loaded"


async def test_driver_that_hangs_makes_nobody_wait(start: Start) -> None:
    """Issue 5: the event loop and the health endpoint never wait for a device."""
    async with machine(start, [l4(0), l4(1)]) as (neuron, nvml):
        await neuron.load("a", vram_mb=0)
        nvml.may_answer.clear()
        device = await until_condition(neuron, 0, "unknown")
        health = await health_of(neuron)
        status, answer, _ = await neuron.post(
            "/v1/chat/completions",
            {"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        )
        nvml.may_answer.set()
        await until_condition(neuron, 0, "ok")

    assert "has not answered" in device["condition_reason"]
    assert device["temp_c"] is None
    assert [one["index"] for one in health["devices"]] == [0, 1]
    assert status == 200, answer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NVMLError_LibraryNotFound("NVML Shared Library Not Found"), "no NVIDIA driver"),
        (NVMLError_DriverNotLoaded("Driver Not Loaded"), "not loaded"),
        (NVMLError_LibRmVersionMismatch("version mismatch"), "different versions"),
        (NVMLError_NoPermission("Insufficient Permissions"), "may not talk"),
    ],
)
async def test_machine_without_a_working_driver_says_why_and_serves(
    start: Start, error: NVMLError, words: str
) -> None:
    """Issue 5: it must hold on machines with no card."""
    source = NvmlSource(FakeNvml([l4()], init_error=error))
    async with start(source=source, devices=[]) as neuron:
        found = await neuron.get("/discovery")
        health = await health_of(neuron)
        await neuron.load("a")
        model = await neuron.model("a")

    assert words in found["cuda_unavailable_reason"]
    assert health["devices"] == []
    assert model["devices"] == []
