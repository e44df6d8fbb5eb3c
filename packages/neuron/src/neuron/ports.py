"""What the supervisor and the API need of the outside, as protocols."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from cortex_core.device import Device, DeviceReading
from cortex_core.ids import BootId, DeviceIndex
from cortex_core.wire.neuron import Link


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """This process and the machine that it runs on."""

    hostname: str
    os: str
    kernel: str
    version: str
    boot_id: BootId


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver said once; the same for one life of the neuron."""

    devices: tuple[Device, ...] = ()
    """In index order; may be empty."""
    cuda_version: str | None = None
    driver_version: str | None = None
    unavailable_reason: str | None = None
    """Why there are no devices to use, or not all; `None` when nothing is wrong."""
    is_declared: bool = False
    """Whether they come from the settings: then memory in use is what the budget says."""
    links: dict[DeviceIndex, tuple[Link, ...]] = msgspec.field(default_factory=dict)
    """Direct connections of each device, as far as they are known."""


class DeviceSource(Protocol):
    """Where devices come from. Its methods block, and are called in a thread."""

    def discover(self) -> DeviceFacts:
        """Return what is there; never raises because something is missing."""
        ...

    def read(self) -> tuple[DeviceReading, ...]:
        """Return one reading per discovered device; what is not known is `None`."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...


class DeviceLanes(Protocol):
    """One at a time on each device."""

    def hold(self, devices: tuple[DeviceIndex, ...]) -> AbstractAsyncContextManager[None]:
        """Wait until all of `devices` are ours, and keep them while the context is open."""
        ...


class MemoryGauge(Protocol):
    """Tells when the driver has memory back."""

    async def used_bytes(self, devices: tuple[DeviceIndex, ...]) -> dict[DeviceIndex, int]:
        """Return a fresh reading of the memory in use; devices that are not known are absent."""
        ...
