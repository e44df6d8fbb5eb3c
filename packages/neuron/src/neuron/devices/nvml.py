"""Devices as NVML, the library of NVIDIA's driver, knows them.

Everything that can be missing on a real machine ends in a reason or in `None`: no library, no
driver, a library that does not match the driver, no device, a device that fell off the bus,
MIG, and fields that a device does not have.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from cortex_core.device import Device, DeviceReading
from cortex_core.ids import DeviceIndex
from cortex_core.wire.neuron import Link
from neuron.devices.nvml_api import Handle, Nvml
from neuron.ports import DeviceFacts

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


class NvmlSource:
    """Devices that the driver has.

    A MIG device is listed by its instances, which count on from the device's own place.

    Args:
        nvml: the module `pynvml`, or what stands in for it.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._handles: dict[DeviceIndex, Handle] = {}
        self._is_open = False

    def discover(self) -> DeviceFacts:
        """Return all devices, and why some or all are missing."""
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            reason = _INIT_REASONS.get(type(error).__name__, f"NVML does not start: {error}")
            return DeviceFacts(unavailable_reason=reason)
        self._is_open = True
        driver, cuda = self._versions()
        found: dict[DeviceIndex, tuple[Device, Handle]] = {}
        reasons: list[str] = []
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            count = 0
            reasons.append(f"the driver does not list its devices: {error}")
        number = 0
        for position in range(count):
            number = self._discover_at(position, number, found, reasons)
        if not found and not reasons:
            reasons.append("the NVIDIA driver sees no device")
        self._handles = {index: handle for index, (_, handle) in found.items()}
        return DeviceFacts(
            devices=tuple(device for device, _ in found.values()),
            driver_version=driver,
            cuda_version=cuda,
            unavailable_reason="; ".join(reasons) or None,
            links=self._links(),
        )

    def read(self) -> tuple[DeviceReading, ...]:
        """Return one reading per device."""
        return tuple(self._read(index, handle) for index, handle in self._handles.items())

    def close(self) -> None:
        """Let go of the library."""
        if self._is_open:
            self._is_open = False
            self._handles = {}
            self._ask(self._nvml.nvmlShutdown)

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
        found: dict[DeviceIndex, tuple[Device, Handle]],
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
            found[DeviceIndex(number)] = (self._device(number, handle, handle), handle)
            return number + 1
        instances = list(self._instances(handle))
        if not instances:
            reasons.append(f"device {position} is in MIG mode and has no instances")
        for instance in instances:
            found[DeviceIndex(number)] = (self._device(number, instance, handle), instance)
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
        )

    def _read(self, index: DeviceIndex, handle: Handle) -> DeviceReading:
        nvml = self._nvml
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        busy = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        temp_c = self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return DeviceReading(
            index=index,
            vram_used_bytes=None if memory is None else memory.used,
            vram_free_bytes=None if memory is None else memory.free,
            utilization_ratio=None if busy is None else busy.gpu / 100,
            temp_c=None if temp_c is None else float(temp_c),
        )

    def _links(self) -> dict[DeviceIndex, tuple[Link, ...]]:
        links = {}
        for index, handle in self._handles.items():
            peers = []
            for other, peer in self._handles.items():
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


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
