"""Devices: what never changes about them, and what always does."""

import msgspec

from cortex_core.ids import DeviceIndex


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU (or MIG slice, or declared device) as discovered."""

    index: DeviceIndex
    name: str
    vram_total_bytes: int
    """0 when the driver does not say (unified memory, some MIG set-ups)."""
    compute_capability: str = ""
    """Such as `8.9`; empty when not known."""
    uuid: str | None = None
    mig: bool = False
    numa_node: int | None = None


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment; `None` means that the driver gave no value, never 0."""

    index: DeviceIndex
    vram_used_bytes: int | None = None
    vram_free_bytes: int | None = None
    utilization_ratio: float | None = None
    """Share of time in which the device was busy, in [0, 1]."""
    temp_c: float | None = None
