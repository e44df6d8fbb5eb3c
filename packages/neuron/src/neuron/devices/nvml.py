"""Devices as NVML, the library of NVIDIA's driver, knows them.

Everything that can be missing on a real machine ends in a reason or in `None`: no library, no
driver, a library that does not match the driver, no device, a device that fell off the bus,
MIG, and fields that a device does not have.
"""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.ids import DeviceIndex
from cortex_core.wire.neuron import Link
from neuron.devices.nvml_api import Handle, Nvml
from neuron.devices.nvml_events import Card, OnXid, XidListener, card_key
from neuron.devices.nvml_questions import Questions
from neuron.devices.nvml_readings import DeviceQuestions
from neuron.ports import DeviceFacts

logger = logging.getLogger(__name__)

T = TypeVar("T")


# By class name, so that the sentences do not depend on the version of the binding.
_INIT_REASONS = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver is installed (libnvidia-ml.so.1 is not there)",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is installed but not loaded",
    "NVMLError_LibRmVersionMismatch": (
        "the NVIDIA driver in the kernel and its libraries are of different versions; "
        "reboot, or reload the driver"
    ),
    "NVMLError_NoPermission": "this user may not talk to the NVIDIA driver",
}


# Where a device is gone, the library is begun anew after so many readings: without that it never
# sees one that is back. Each time the other devices are without a reading for a moment, so it is
# done seldom while there are others.
_ANEW_AFTER = 30
_ANEW_AFTER_ALL = 5


class _Found(msgspec.Struct, frozen=True):
    """A device as the library has it now."""

    device: Device
    handle: Handle
    card: Handle
    """The card that it is a slice of; the same handle where it is a whole one."""


class NvmlSource:
    """Devices that the driver has.

    A MIG device is listed by its instances, which count on from the device's own place. Devices
    keep their index when the driver or one of them goes and comes back; one that was not there
    at first is not taken in.

    Args:
        nvml: the module `pynvml`, or what stands in for it.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._questions = Questions(nvml)
        self._known: dict[DeviceIndex, Device] = {}
        self._found: dict[DeviceIndex, _Found] = {}
        self._absent_reason = "the driver does not list it"
        self._rounds_without = 0
        self._listener: XidListener | None = None
        self._is_open = False

    def discover(self) -> DeviceFacts:
        """Return all devices, and why some or all are missing."""
        reason = self._open()
        if reason is not None:
            return DeviceFacts(unavailable_reason=reason)
        driver, cuda = self._versions()
        found, reasons = self._enumerate()
        if not found and not reasons:
            reasons.append("the NVIDIA driver sees no device")
        self._found = found
        self._known = {index: one.device for index, one in found.items()}
        return DeviceFacts(
            devices=tuple(self._known.values()),
            driver_version=driver,
            cuda_version=cuda,
            unavailable_reason="; ".join(reasons) or None,
            links=self._links(),
        )

    def read(self) -> tuple[DeviceReading, ...]:
        """Return one reading per device; begins the library anew now and then where one is gone."""
        readings = self._read_all()
        gone = [one for one in readings if one.condition is DeviceCondition.GONE]
        self._rounds_without = self._rounds_without + 1 if gone else 0
        patience = _ANEW_AFTER_ALL if len(gone) == len(readings) else _ANEW_AFTER
        if self._rounds_without < patience:
            return readings
        self._rounds_without = 0
        return self._read_all() if self._begin_anew() else readings

    def listen(self, on_xid: OnXid) -> None:
        """Have `on_xid` called, from another thread, for every Xid until this is closed."""
        if self._is_open:
            self._listener = XidListener(self._nvml, on_xid)
            self._listener.attach(self._cards())

    def close(self) -> None:
        """Let go of the library."""
        if self._listener is not None:
            self._listener.release()
            self._listener.close()
        self._close()

    def _open(self) -> str | None:
        """Open the library; return why it cannot be."""
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            return _INIT_REASONS.get(type(error).__name__, f"NVML does not start: {error}")
        self._is_open = True
        return None

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._found = {}
            self._ask(self._nvml.nvmlShutdown)

    def _begin_anew(self) -> bool:
        """Close and open the library and find the known devices in it; return whether it was."""
        if self._listener is not None and not self._listener.release():
            # Closed under a thread that is inside it, the library may do anything.
            return False
        self._close()
        reason = self._open()
        self._absent_reason = reason or "the driver does not list it"
        self._questions.forget()
        if reason is None:
            present = {_identity(one.device): one for one in self._enumerate()[0].values()}
            self._found = {
                index: present[_identity(device)]
                for index, device in self._known.items()
                if _identity(device) in present
            }
            logger.info("NVML begun anew", extra={"devices": sorted(self._found)})
            if self._listener is not None:
                self._listener.attach(self._cards())
        return True

    def _read_all(self) -> tuple[DeviceReading, ...]:
        self._questions.begin()
        return tuple(self._read(index) for index in self._known)

    def _read(self, index: DeviceIndex) -> DeviceReading:
        found = self._found.get(index)
        if found is None:
            return DeviceReading(
                index=index, condition=DeviceCondition.GONE, condition_reason=self._absent_reason
            )
        asked = DeviceQuestions(self._nvml, self._questions, index, found.handle, found.card)
        return asked.read()

    def _cards(self) -> tuple[Card, ...]:
        cards: dict[int, tuple[Handle, list[DeviceIndex]]] = {}
        for index, one in self._found.items():
            cards.setdefault(card_key(one.card), (one.card, []))[1].append(index)
        return tuple(Card(handle, tuple(devices)) for handle, devices in cards.values())

    def _enumerate(self) -> tuple[dict[DeviceIndex, _Found], list[str]]:
        """Return what the library lists, and what is wrong with the rest."""
        found: dict[DeviceIndex, _Found] = {}
        reasons: list[str] = []
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            count = 0
            reasons.append(f"the driver does not list its devices: {error}")
        number = 0
        for position in range(count):
            number = self._discover_at(position, number, found, reasons)
        return found, reasons

    def _versions(self) -> tuple[str | None, str | None]:
        driver = self._ask(self._nvml.nvmlSystemGetDriverVersion)
        cuda = self._ask(self._nvml.nvmlSystemGetCudaDriverVersion)
        # NVML API reference: 1000 x major + 10 x minor.
        version = None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
        return None if driver is None else _text(driver), version

    def _discover_at(
        self,
        position: int,
        number: int,
        found: dict[DeviceIndex, _Found],
        reasons: list[str],
    ) -> int:
        """Add what is at `position` and return the number of the next device."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(position)
        except self._nvml.NVMLError as error:
            reasons.append(f"device {position} cannot be used: {error}")
            return number + 1
        mode = self._ask(lambda: self._nvml.nvmlDeviceGetMigMode(handle))
        if mode is None or not mode[0]:
            device = self._device(number, handle, handle)
            found[DeviceIndex(number)] = _Found(device, handle, handle)
            return number + 1
        instances = list(self._instances(handle))
        if not instances:
            reasons.append(f"device {position} is in MIG mode and has no instances")
        for instance in instances:
            device = self._device(number, instance, handle)
            found[DeviceIndex(number)] = _Found(device, instance, handle)
            number += 1
        return number

    def _instances(self, parent: Handle) -> Iterator[Handle]:
        count = self._ask(lambda: self._nvml.nvmlDeviceGetMaxMigDeviceCount(parent)) or 0
        for position in range(count):
            # Instances may be numbered with gaps.
            instance = self._ask_with(
                self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, position
            )
            if instance is not None:
                yield instance

    def _device(self, number: int, handle: Handle, parent: Handle) -> Device:
        nvml = self._nvml
        name = self._ask(lambda: nvml.nvmlDeviceGetName(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        # An instance does not say its capability, but its parent does.
        capability = self._ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(parent))
        uuid = self._ask(lambda: nvml.nvmlDeviceGetUUID(handle))
        numa_node = self._ask(lambda: nvml.nvmlDeviceGetNumaNodeId(parent))
        return Device(
            index=DeviceIndex(number),
            name="unknown NVIDIA device" if name is None else _text(name),
            vram_total_bytes=0 if memory is None else memory.total,
            compute_capability="" if capability is None else f"{capability[0]}.{capability[1]}",
            uuid=None if uuid is None else _text(uuid),
            mig=handle is not parent,
            numa_node=numa_node,
            pcie_max_generation=self._ask(lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(parent)),
            pcie_max_width=self._ask(lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(parent)),
        )

    def _links(self) -> dict[DeviceIndex, tuple[Link, ...]]:
        links = {}
        handles = {index: one.handle for index, one in self._found.items()}
        for index, handle in handles.items():
            peers = []
            for other, peer in handles.items():
                status = None
                if other != index:
                    status = self._ask_with(
                        self._nvml.nvmlDeviceGetP2PStatus,
                        handle,
                        peer,
                        self._nvml.NVML_P2P_CAPS_INDEX_NVLINK,
                    )
                if status is not None:
                    is_nvlink = status == self._nvml.NVML_P2P_STATUS_OK
                    peers.append(Link(peer=other, kind="nvlink" if is_nvlink else "pcie"))
            links[index] = tuple(peers)
        return links

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Return the answer, or `None` when this device or driver has none."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None
        except AttributeError:
            # An older binding does not have the function at all.
            return None

    def _ask_with(self, question: Callable[..., T], *arguments: object) -> T | None:
        return self._ask(lambda: question(*arguments))


def _identity(device: Device) -> tuple[object, ...]:
    """Return by what a device is known again; its index, where it has no id of its own."""
    return ("id", device.uuid) if device.uuid is not None else ("index", device.index)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
