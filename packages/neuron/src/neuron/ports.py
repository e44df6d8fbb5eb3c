"""What the supervisor and the API need of the outside, as protocols."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from cortex_core.device import Device, DeviceReading
from cortex_core.errors import RequestError
from cortex_core.group import Seat
from cortex_core.ids import BootId, DeviceIndex
from cortex_core.wire.neuron import FollowerRequest, Link


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

    def listen(self, on_xid: Callable[[DeviceIndex, int], None]) -> None:
        """Have `on_xid` called, from another thread, for every Xid until this is closed.

        Xids are NVIDIA's numbered reports of faults; a source that has none calls nothing.
        """
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...


class Follower(Protocol):
    """A part of a copy on another node, which lives for as long as somebody holds this."""

    @property
    def endpoint(self) -> str:
        """Base URL of its neuron."""
        ...

    @property
    def lost(self) -> asyncio.Future[RequestError]:
        """Done when it is no more, with the reason."""
        ...

    async def joined(self) -> None:
        """Wait until it has its memory and its devices.

        Raises:
            RequestError: it is lost.
        """
        ...

    async def settle(self) -> None:
        """Say that the head is up, and wait until it counts as loaded there.

        Raises:
            RequestError: it is lost.
        """
        ...

    async def close(self) -> None:
        """End it, and wait for a bounded time until its memory is free."""
        ...


class Peers(Protocol):
    """Other neurons."""

    async def seat(self, endpoint: str) -> Seat:
        """Return the place of the head of a new group of which `endpoint` is to be a part."""
        ...

    async def host_towards(self, address: str) -> str:
        """Return the address under which this node is reached from `address`."""
        ...

    def follow(self, endpoint: str, request: FollowerRequest) -> Follower:
        """Have the neuron at `endpoint` start a follower."""
        ...


class DeviceWatch(Protocol):
    """How the devices do, at once."""

    def latest(self) -> tuple[DeviceReading, ...]:
        """Return the latest reading of every device; what is too old to mean anything is unknown."""
        ...

    def xids(self, device: DeviceIndex) -> tuple[int, ...]:
        """Return the numbers of the latest faults of a device, the last one last."""
        ...


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What a device's worker is busy with."""

    work: str
    """Such as `load a/model`."""
    held_s: float


class DeviceLanes(Protocol):
    """One at a time on each device."""

    def held(self, device: DeviceIndex) -> Held | None:
        """Return who has a device now, at once; `None` when nobody has."""
        ...

    def waiting(self, device: DeviceIndex) -> int:
        """Return how many wait for a device."""
        ...

    def hold(self, devices: tuple[DeviceIndex, ...]) -> AbstractAsyncContextManager[None]:
        """Wait until all of `devices` are ours, and keep them while the context is open."""
        ...


class MemoryGauge(Protocol):
    """Tells when the driver has memory back."""

    async def used_bytes(self, devices: tuple[DeviceIndex, ...]) -> dict[DeviceIndex, int]:
        """Return a fresh reading of the memory in use; devices that are not known are absent."""
        ...
