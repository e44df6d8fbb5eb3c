"""Discovery and readings through NVML, on every machine that we know of."""

import pytest

from cortex_core.wire.neuron import Link
from neuron.devices.nvml import NvmlSource
from tests.fakes.nvml import (
    GIB,
    FakeCard,
    FakeNvml,
    NVMLError,
    NVMLError_DriverNotLoaded,
    NVMLError_LibraryNotFound,
    NVMLError_LibRmVersionMismatch,
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NVMLError_LibraryNotFound("NVML Shared Library Not Found"), "no NVIDIA driver"),
        (NVMLError_DriverNotLoaded("Driver Not Loaded"), "not loaded"),
        (NVMLError_LibRmVersionMismatch("Driver/library version mismatch"), "different versions"),
        (NVMLError("Unknown Error"), "Unknown Error"),
    ],
)
def test_driver_that_does_not_start_is_a_reason_and_no_crash(error: NVMLError, words: str) -> None:
    """Ours: issue 2, "a clear answer, never a crash or a silent no GPUs"."""
    source = NvmlSource(FakeNvml(init_error=error))

    facts = source.discover()

    assert facts.devices == ()
    assert facts.unavailable_reason is not None
    assert words in facts.unavailable_reason
    assert source.read() == ()


def test_driver_without_cards_says_so() -> None:
    """Ours: no devices is never silent."""
    facts = NvmlSource(FakeNvml()).discover()

    assert facts.devices == ()
    assert facts.unavailable_reason == "the NVIDIA driver sees no device"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_card_is_found_in_the_driver_s_order(count: int) -> None:
    """Ours: index, name, memory, capability and versions are the driver's."""
    cards = [FakeCard(f"card {number}", total=(number + 1) * GIB) for number in range(count)]

    facts = NvmlSource(FakeNvml(cards)).discover()

    assert [device.index for device in facts.devices] == list(range(count))
    assert [device.name for device in facts.devices] == [card.name for card in cards]
    assert [device.vram_total_bytes for device in facts.devices] == [card.total for card in cards]
    assert {device.compute_capability for device in facts.devices} == {"8.9"}
    assert (facts.driver_version, facts.cuda_version) == ("570.124.06", "12.8")
    assert facts.unavailable_reason is None


def test_links_between_cards_are_named() -> None:
    """Ours: placement may prefer linked devices."""
    facts = NvmlSource(FakeNvml([FakeCard(), FakeCard()], has_nvlink=True)).discover()

    assert facts.links == {
        0: (Link(peer=1, kind="nvlink"),),
        1: (Link(peer=0, kind="nvlink"),),
    }


def test_instances_of_a_mig_card_are_devices_and_the_card_is_not() -> None:
    """Ours: instances count on from their card's place; gaps in their numbers do not matter."""
    parent = FakeCard(
        "A100",
        instances={
            0: FakeCard("MIG 3g", total=20 * GIB, capability=None),
            2: FakeCard("MIG 4g", total=None, capability=None),
        },
    )
    facts = NvmlSource(FakeNvml([FakeCard("L4"), parent, FakeCard("T4")])).discover()

    assert [(d.index, d.name, d.mig) for d in facts.devices] == [
        (0, "L4", False),
        (1, "MIG 3g", True),
        (2, "MIG 4g", True),
        (3, "T4", False),
    ]
    assert [d.compute_capability for d in facts.devices] == ["8.9"] * 4
    assert facts.devices[2].vram_total_bytes == 0


def test_mig_card_without_instances_is_a_reason() -> None:
    """Ours: such a card looks fine in nvidia-smi and cannot be used."""
    facts = NvmlSource(FakeNvml([FakeCard(instances={})])).discover()

    assert facts.devices == ()
    assert facts.unavailable_reason == "device 0 is in MIG mode and has no instances"


def test_field_that_is_not_available_loses_no_other_field() -> None:
    """Ours: `[N/A]` is unknown, never 0, and never takes the device away."""
    card = FakeCard(b"GB10", total=None, busy=None, uuid=None, temp_c=51)
    source = NvmlSource(FakeNvml([card]))

    facts = source.discover()
    (reading,) = source.read()

    assert facts.devices[0].name == "GB10"
    assert (facts.devices[0].uuid, facts.devices[0].numa_node) == (None, None)
    assert facts.devices[0].vram_total_bytes == 0
    assert (reading.vram_used_bytes, reading.vram_free_bytes) == (None, None)
    assert reading.utilization_ratio is None
    assert reading.temp_c == 51


def test_lost_card_is_named_and_the_others_keep_their_numbers() -> None:
    """Ours: one card off the bus does not renumber or hide the rest."""
    facts = NvmlSource(FakeNvml([FakeCard("a"), FakeCard(is_lost=True), FakeCard("c")])).discover()

    assert [(device.index, device.name) for device in facts.devices] == [(0, "a"), (2, "c")]
    assert facts.unavailable_reason == "device 1 cannot be used: GPU is lost"


def test_reading_has_memory_load_and_temperature() -> None:
    """Ours: bytes and ratios."""
    source = NvmlSource(FakeNvml([FakeCard(total=24 * GIB, used=6 * GIB, busy=50)]))
    source.discover()

    (reading,) = source.read()

    assert reading.vram_used_bytes == 6 * GIB
    assert reading.vram_free_bytes == 18 * GIB
    assert reading.utilization_ratio == 0.5


def test_close_lets_go_of_the_library_once() -> None:
    """Ours: a source that never opened has nothing to close."""
    nvml = FakeNvml([FakeCard()])
    source = NvmlSource(nvml)
    source.close()
    source.discover()
    assert nvml.is_open

    source.close()

    assert not nvml.is_open
