"""Devices: what never changes about them, and what always does."""

import enum

import msgspec

from cortex_core.ids import DeviceIndex


class DeviceCondition(enum.StrEnum):
    """Whether a device can be used, by its name on the wire."""

    OK = "ok"
    DEGRADED = "degraded"
    """It works, and somebody should look at it."""
    POISONED = "poisoned"
    """Nothing runs on it before it is reset."""
    GONE = "gone"
    """The driver does not reach it any more."""
    UNKNOWN = "unknown"
    """Nobody says; also what a newer neuron says in a word of its own."""

    @classmethod
    def from_wire(cls, condition: str | None) -> "DeviceCondition":
        """Return the member for `condition`, or `UNKNOWN`."""
        return next((known for known in cls if known.value == condition), cls.UNKNOWN)

    @property
    def is_usable(self) -> bool:
        """Whether a model may be loaded there; what nobody knows is tried."""
        return self not in (DeviceCondition.POISONED, DeviceCondition.GONE)


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
    pcie_max_generation: int | None = None
    """What device and machine can do together."""
    pcie_max_width: int | None = None
    """Lanes, likewise."""


class DeviceProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that has a device open."""

    pid: int
    used_bytes: int | None = None


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment; `None` means that the driver gave no value, never 0."""

    index: DeviceIndex
    condition: DeviceCondition = DeviceCondition.UNKNOWN
    condition_reason: str | None = None
    """`None` where nothing is to be said."""
    vram_used_bytes: int | None = None
    vram_free_bytes: int | None = None
    other_used_bytes: int | None = None
    """What of it no model of the node accounts for."""
    utilization_ratio: float | None = None
    """Share of time in which the device was busy, in [0, 1]."""
    memory_busy_ratio: float | None = None
    """Share of time in which its memory was read or written, in [0, 1]."""
    temp_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttled: tuple[str, ...] | None = None
    """Why its clocks are held down, in words of a closed set; empty when they are not."""
    ecc_corrected: int | None = None
    """Errors in memory since the driver was loaded."""
    ecc_uncorrected: int | None = None
    is_repair_pending: bool | None = None
    """Whether memory waits for a reset to be replaced (retired pages, remapped rows)."""
    is_repair_failed: bool | None = None
    """Whether memory could not be replaced."""
    recovery_action: str | None = None
    """What the driver says that has to be done with it; `none` most of the time."""
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlinks: int | None = None
    """Links that are up."""
    processes: tuple[DeviceProcess, ...] | None = None
