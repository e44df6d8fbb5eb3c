"""Discovery and readings through NVML, on every machine that we know of."""

import ctypes
import queue

import pynvml
import pytest
from hypothesis import given, strategies as st

from cortex_core.device import DeviceCondition, DeviceProcess, DeviceReading
from cortex_core.ids import DeviceIndex
from cortex_core.wire.neuron import Link
from neuron.devices.nvml import NvmlSource
from neuron.devices.nvml_events import card_key
from tests.fakes.nvml import (
    GIB,
    FakeCard,
    FakeNvml,
    NVMLError,
    NVMLError_DriverNotLoaded,
    NVMLError_LibraryNotFound,
    NVMLError_LibRmVersionMismatch,
    NVMLError_NotSupported,
)


class FewLinks(FakeNvml):
    """A driver that calls a link which the card does not have unsupported."""

    def nvmlDeviceGetNvLinkState(self, handle: object, link: int) -> int:  # noqa: N802
        if link >= 2:
            raise NVMLError_NotSupported("Not Supported")
        return super().nvmlDeviceGetNvLinkState(handle, link)


def test_links_that_a_card_lacks_do_not_cost_those_that_it_has() -> None:
    """Ours: what has no answer is not asked again, and the others are."""
    source = NvmlSource(FewLinks([FakeCard(nvlinks=(1, 1))]))
    source.discover()

    assert [source.read()[0].nvlinks for _ in range(2)] == [2, 2]


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


def test_reading_has_every_field_that_the_card_has() -> None:
    """NVML API reference: milliwatts, MHz, bits of reasons, counters since the driver came."""
    card = FakeCard(
        total=24 * GIB,
        busy=50,
        power_mw=71_600,
        power_limit_mw=72_000,
        clocks_mhz=(1500, 6251),
        clock_reasons=0x004 | 0x001 | 0x040,
        ecc=(3, 1),
        rows=(0, 1, 1, 0),
        recovery_action=0,
        pcie=(1, 8, 4, 16),
        nvlinks=(1, 0, 1),
        processes={77: 2 * GIB, 5: None},
    )
    source = NvmlSource(FakeNvml([card]))
    facts = source.discover()

    (reading,) = source.read()

    assert (facts.devices[0].pcie_max_generation, facts.devices[0].pcie_max_width) == (4, 16)
    assert reading.memory_busy_ratio == 0.25
    assert (reading.power_w, reading.power_limit_w) == (71.6, 72.0)
    assert (reading.sm_clock_mhz, reading.memory_clock_mhz) == (1500, 6251)
    assert reading.throttled == ("power_cap", "hardware_thermal")
    assert (reading.ecc_corrected, reading.ecc_uncorrected) == (3, 1)
    assert (reading.is_repair_pending, reading.is_repair_failed) == (True, False)
    assert reading.recovery_action == "none"
    assert (reading.pcie_generation, reading.pcie_width) == (1, 8)
    assert reading.nvlinks == 2
    assert reading.processes == (
        DeviceProcess(pid=5),
        DeviceProcess(pid=77, used_bytes=2 * GIB),
    )


def test_card_that_says_nothing_gives_a_reading_of_nothing() -> None:
    """Ours: `[N/A]` everywhere is a device of which nothing is known, not one without load."""
    card = FakeCard(total=None, busy=None, temp_c=None, capability=None, uuid=None)
    source = NvmlSource(FakeNvml([card]))
    source.discover()

    assert source.read() == (DeviceReading(index=DeviceIndex(0)),)


def test_question_without_an_answer_is_asked_once() -> None:
    """Ours: the driver is not bothered every second with what it does not support."""
    nvml = FakeNvml([FakeCard()])
    source = NvmlSource(nvml)
    source.discover()
    source.read()
    nvml.calls.clear()

    source.read()

    assert set(nvml.calls) == {"memory", "busy", "temperature"}


def test_older_binding_lacks_functions_and_nothing_else() -> None:
    """Ours: the binding is another package than the driver, and may be older."""

    class Older(FakeNvml):
        nvmlDeviceGetPowerUsage = property()  # noqa: N815 - not there

    source = NvmlSource(Older([FakeCard(power_mw=1000, power_limit_mw=2000)]))
    source.discover()

    (reading,) = source.read()

    assert (reading.power_w, reading.power_limit_w) == (None, 2.0)


def test_card_that_is_lost_is_gone_and_the_others_are_read() -> None:
    """Ours: NVML_ERROR_GPU_IS_LOST is a condition of that one card."""
    lost, well = FakeCard(uuid="GPU-a"), FakeCard(uuid="GPU-b", temp_c=50)
    source = NvmlSource(FakeNvml([lost, well]))
    source.discover()
    lost.is_lost = True

    first, second = source.read()

    assert first == DeviceReading(
        index=DeviceIndex(0),
        condition=DeviceCondition.GONE,
        condition_reason="the driver does not reach it any more (GPU is lost)",
    )
    assert second.temp_c == 50


def test_card_that_needs_a_reset_is_poisoned() -> None:
    """NVML API reference: NVML_ERROR_RESET_REQUIRED."""
    card = FakeCard()
    source = NvmlSource(FakeNvml([card]))
    source.discover()
    card.needs_reset = True

    (reading,) = source.read()

    assert reading.condition is DeviceCondition.POISONED


def read_until_back(source: NvmlSource, rounds: int = 40) -> tuple[DeviceReading, ...]:
    """Read until every device is there again, so many times at the most."""
    readings = source.read()
    for _ in range(rounds):
        readings = source.read()
        if all(one.condition is not DeviceCondition.GONE for one in readings):
            return readings
    return readings


def test_devices_are_found_again_after_the_driver_was_loaded_anew() -> None:
    """Ours: handles of the old driver are worth nothing, and the library is begun anew."""
    nvml = FakeNvml([FakeCard(uuid="GPU-a", temp_c=41), FakeCard(uuid="GPU-b", temp_c=42)])
    source = NvmlSource(nvml)
    source.discover()
    nvml.reload()
    nvml.cards.reverse()

    gone = source.read()
    back = read_until_back(source)

    assert {one.condition for one in gone} == {DeviceCondition.GONE}
    assert [(one.index, one.temp_c) for one in back] == [(0, 41), (1, 42)]
    assert nvml.opened == 2


def test_card_that_comes_back_has_its_number_again() -> None:
    """Ours: hot removal and return; a card that was not there at first is not taken in."""
    nvml = FakeNvml([FakeCard(uuid="GPU-a", temp_c=41), FakeCard(uuid="GPU-b", temp_c=42)])
    source = NvmlSource(nvml)
    source.discover()
    removed = nvml.cards.pop(0)
    removed.is_lost = True
    for _ in range(40):
        source.read()
    nvml.cards += [FakeCard(uuid="GPU-new"), FakeCard(uuid="GPU-a", temp_c=40)]

    back = read_until_back(source)

    assert [(one.index, one.temp_c) for one in back] == [(0, 40), (1, 42)]


def test_driver_that_stays_away_is_a_reason_for_every_device() -> None:
    """Ours: version mismatch after an upgrade of the libraries under a running daemon."""
    nvml = FakeNvml([FakeCard()])
    source = NvmlSource(nvml)
    source.discover()
    nvml.reload()
    nvml.init_error = NVMLError_LibRmVersionMismatch("mismatch")
    for _ in range(10):
        source.read()

    readings = source.read()

    assert readings[0].condition is DeviceCondition.GONE
    assert "different versions" in (readings[0].condition_reason or "")


def test_xid_is_told_with_its_device_also_after_the_driver_came_back() -> None:
    """NVML API reference: events of type `nvmlEventTypeXidCriticalError`."""
    nvml = FakeNvml([FakeCard("L4", uuid="GPU-a"), slices := FakeCard(uuid="GPU-b")])
    slices.instances = {0: FakeCard(uuid="MIG-1"), 1: FakeCard(uuid="MIG-2")}
    told: queue.SimpleQueue[tuple[DeviceIndex, int]] = queue.SimpleQueue()
    source = NvmlSource(nvml)
    source.discover()
    source.listen(lambda device, xid: told.put((device, xid)))

    nvml.xid(slices, 31)
    first = [told.get(timeout=5), told.get(timeout=5)]
    nvml.reload()
    read_until_back(source)
    nvml.xid(nvml.cards[0], 79)
    second = told.get(timeout=5)
    source.close()

    assert first == [(1, 31), (2, 31)]
    assert second == (0, 79)


@given(address=st.integers(1, 2**40))
def test_two_handles_of_one_card_are_known_to_be_one(address: int) -> None:
    """The binding: handles are pointers, and two pointers are never equal."""
    one, other = (ctypes.cast(address, pynvml.c_nvmlDevice_t) for _ in range(2))

    assert one is not other
    assert card_key(one) == card_key(other)


def test_close_lets_go_of_the_library_once() -> None:
    """Ours: a source that never opened has nothing to close."""
    nvml = FakeNvml([FakeCard()])
    source = NvmlSource(nvml)
    source.close()
    source.discover()
    assert nvml.is_open

    source.close()

    assert not nvml.is_open
