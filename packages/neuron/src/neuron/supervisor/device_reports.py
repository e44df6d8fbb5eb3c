"""How devices do, as it goes over the wire."""

from collections.abc import Mapping

import msgspec

from cortex_core.device import DeviceReading
from cortex_core.ids import ModelId
from cortex_core.units import mib_from_bytes
from cortex_core.wire.neuron import DeviceHealth, DeviceProcess
from neuron.lifecycle.budget import Budget
from neuron.ports import DeviceFacts, Held


def device_health(
    facts: DeviceFacts, reading: DeviceReading, budget: Budget, owners: Mapping[int, ModelId]
) -> DeviceHealth:
    """Return a device's health; memory of a declared device is what the budget says.

    Args:
        facts: the devices.
        reading: of one of them.
        budget: what models hold.
        owners: whose engine a process belongs to, by its id.
    """
    index, health = reading.index, _sensed(reading)
    if facts.is_declared:
        free = budget.free_bytes(index)
        return msgspec.structs.replace(
            health,
            vram_used_mb=mib_from_bytes(budget.held_bytes(index)),
            vram_free_mb=None if free is None else mib_from_bytes(free),
        )
    is_known = reading.vram_used_bytes is not None
    return msgspec.structs.replace(
        health,
        leaked_mb=mib_from_bytes(budget.leaked.get(index, 0)),
        other_mb=mib_from_bytes(budget.unheld.get(index, 0)) if is_known else None,
        processes=_processes(reading, owners),
    )


def with_work(health: DeviceHealth, xids: tuple[int, ...], held: Held | None) -> DeviceHealth:
    """Return `health` with what the device reported lately, and with who has it now."""
    return msgspec.structs.replace(
        health,
        xids=xids,
        busy_with=None if held is None else held.work,
        busy_s=None if held is None else round(held.held_s, 3),
    )


def _sensed(reading: DeviceReading) -> DeviceHealth:
    used, free = reading.vram_used_bytes, reading.vram_free_bytes
    busy, reads = reading.utilization_ratio, reading.memory_busy_ratio
    return DeviceHealth(
        index=reading.index,
        vram_used_mb=None if used is None else mib_from_bytes(used),
        vram_free_mb=None if free is None else mib_from_bytes(free),
        utilization_pct=None if busy is None else round(100 * busy, 1),
        temp_c=reading.temp_c,
        condition=reading.condition.value,
        condition_reason=reading.condition_reason,
        memory_busy_pct=None if reads is None else round(100 * reads, 1),
        power_w=reading.power_w,
        power_limit_w=reading.power_limit_w,
        sm_clock_mhz=reading.sm_clock_mhz,
        memory_clock_mhz=reading.memory_clock_mhz,
        throttled=reading.throttled,
        ecc_corrected=reading.ecc_corrected,
        ecc_uncorrected=reading.ecc_uncorrected,
        repair_pending=reading.is_repair_pending,
        repair_failed=reading.is_repair_failed,
        recovery_action=reading.recovery_action,
        pcie_generation=reading.pcie_generation,
        pcie_width=reading.pcie_width,
        nvlinks=reading.nvlinks,
    )


def _processes(
    reading: DeviceReading, owners: Mapping[int, ModelId]
) -> tuple[DeviceProcess, ...] | None:
    if reading.processes is None:
        return None
    return tuple(
        DeviceProcess(
            pid=one.pid,
            used_mb=None if one.used_bytes is None else mib_from_bytes(one.used_bytes),
            model=owners.get(one.pid),
        )
        for one in reading.processes
    )
