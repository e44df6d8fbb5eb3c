"""One reading of one device, field by field.

Source of names and units: NVML API reference, release 13.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

from cortex_core.device import DeviceCondition, DeviceProcess, DeviceReading
from cortex_core.ids import DeviceIndex
from neuron.devices.nvml_api import Handle, Nvml, ProcessInfo
from neuron.devices.nvml_questions import Questions, Trouble

T = TypeVar("T")

# `nvmlClocksEventReasons`: those that hold clocks down, by bit. An idle device, and clocks that
# somebody set, are not among them.
_THROTTLE_BITS = {
    0x004: "power_cap",
    0x008: "hardware_slowdown",
    0x020: "software_thermal",
    0x040: "hardware_thermal",
    0x080: "power_brake",
}

# `nvmlDeviceGpuRecoveryAction_t`.
_RECOVERY_ACTIONS = {
    0: "none",
    1: "reset",
    2: "reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex",
    6: "bus_reset",
    7: "reboot",
}

_CONDITIONS = {
    Trouble.LOST: (DeviceCondition.GONE, "the driver does not reach it any more"),
    Trouble.RESET: (DeviceCondition.POISONED, "it has to be reset before it can be used"),
    Trouble.LIBRARY: (DeviceCondition.GONE, "the driver went away"),
}


class DeviceQuestions:
    """All that is asked of one device.

    Args:
        nvml: the binding.
        questions: asks them.
        index: of the device.
        handle: of the device.
        parent: of the card that it is a part of; the same where it is a whole one.
    """

    def __init__(
        self, nvml: Nvml, questions: Questions, index: DeviceIndex, handle: Handle, parent: Handle
    ) -> None:
        self._nvml = nvml
        self._questions = questions
        self._index = index
        self._handle = handle
        self._parent = parent

    def read(self) -> DeviceReading:
        """Return what it says now; its condition only where the driver itself names one."""
        nvml, ask, handle, card = self._nvml, self._ask, self._handle, self._parent
        memory = ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        busy = ask("busy", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        # A slice of a card says nothing of these, but the card does.
        temp_c = ask(
            "temperature", lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
        )
        power = ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(card))
        limit = ask("limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(card))
        pending, failed = self._repairs()
        reading = DeviceReading(
            index=self._index,
            vram_used_bytes=None if memory is None else memory.used,
            vram_free_bytes=None if memory is None else memory.free,
            utilization_ratio=None if busy is None else busy.gpu / 100,
            memory_busy_ratio=None if busy is None else busy.memory / 100,
            temp_c=None if temp_c is None else float(temp_c),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            sm_clock_mhz=ask("sm", lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=ask(
                "clock", lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM)
            ),
            throttled=self._throttled(),
            ecc_corrected=self._ecc(lambda: nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc(lambda: nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            is_repair_pending=pending,
            is_repair_failed=failed,
            recovery_action=self._recovery_action(),
            pcie_generation=ask(
                "generation", lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(card)
            ),
            pcie_width=ask("width", lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(card)),
            nvlinks=self._nvlinks(),
            processes=self._processes(),
        )
        return self._judged(reading)

    def _judged(self, reading: DeviceReading) -> DeviceReading:
        trouble = self._questions.trouble(self._index)
        if trouble is None:
            return reading
        condition, words = _CONDITIONS[trouble[0]]
        # What was answered before the trouble showed means nothing any more.
        return DeviceReading(
            index=self._index, condition=condition, condition_reason=f"{words} ({trouble[1]})"
        )

    def _throttled(self) -> tuple[str, ...] | None:
        nvml, card = self._nvml, self._parent
        bits = self._ask("clocks", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(card))
        if bits is None:
            # The name that it had before driver 535.
            bits = self._ask(
                "throttling", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
            )
        if bits is None:
            return None
        return tuple(name for bit, name in _THROTTLE_BITS.items() if bits & bit)

    def _ecc(self, kind: Callable[[], int]) -> int | None:
        nvml, card = self._nvml, self._parent
        return self._ask(
            "ecc", lambda: nvml.nvmlDeviceGetTotalEccErrors(card, kind(), nvml.NVML_VOLATILE_ECC)
        )

    def _repairs(self) -> tuple[bool | None, bool | None]:
        """Return whether memory waits for a reset to be replaced, and whether that failed."""
        nvml, card = self._nvml, self._parent
        rows = self._ask("rows", lambda: nvml.nvmlDeviceGetRemappedRows(card))
        if rows is not None:
            return bool(rows[2]), bool(rows[3])
        # Cards before Ampere retire pages instead.
        pages = self._ask("pages", lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(card))
        return (None if pages is None else bool(pages)), None

    def _recovery_action(self) -> str | None:
        nvml, card = self._nvml, self._parent
        values = self._ask(
            "recovery",
            lambda: nvml.nvmlDeviceGetFieldValues(card, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]),
        )
        if not values or values[0].nvmlReturn:
            return None
        return _RECOVERY_ACTIONS.get(values[0].value.uiVal)

    def _nvlinks(self) -> int | None:
        nvml, card = self._nvml, self._parent
        states: list[int] = []
        for link in range(self._ask("links", lambda: nvml.NVML_NVLINK_MAX_LINKS) or 0):
            state = self._ask(f"link {link}", functools.partial(self._nvlink, card, link))
            if state is None:
                # The constant is for all cards; this one has fewer.
                break
            states.append(state)
        return sum(map(bool, states)) if states else None

    def _nvlink(self, card: Handle, link: int) -> int:
        return self._nvml.nvmlDeviceGetNvLinkState(card, link)

    def _processes(self) -> tuple[DeviceProcess, ...] | None:
        nvml, handle = self._nvml, self._handle
        lists = (
            self._ask("compute", lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            self._ask("graphics", lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)),
        )
        known = [found for found in lists if found is not None]
        if not known:
            return None
        # A process that does both is in both lists, with the same number.
        by_pid: dict[int, ProcessInfo] = {one.pid: one for found in known for one in found}
        return tuple(
            DeviceProcess(pid=pid, used_bytes=one.usedGpuMemory)
            for pid, one in sorted(by_pid.items())
        )

    def _ask(self, name: str, question: Callable[[], T]) -> T | None:
        return self._questions.ask(self._index, name, question)
