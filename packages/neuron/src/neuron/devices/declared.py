"""Devices that `neuron.toml` declares; nothing is asked of a driver."""

from collections.abc import Callable

from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.ids import DeviceIndex
from cortex_core.units import bytes_from_mib
from neuron.ports import DeviceFacts
from neuron.settings import DeclaredDevice


class DeclaredSource:
    """Devices as `[[devices]]` says."""

    def __init__(self, declared: tuple[DeclaredDevice, ...]) -> None:
        self._facts = DeviceFacts(
            devices=tuple(
                sorted((_device(entry) for entry in declared), key=lambda device: device.index)
            ),
            is_declared=True,
        )

    def discover(self) -> DeviceFacts:
        """Return the declared devices in index order."""
        return self._facts

    def read(self) -> tuple[DeviceReading, ...]:
        """Return nothing but a condition: nobody measures a declared device."""
        return tuple(
            DeviceReading(index=device.index, condition=DeviceCondition.OK)
            for device in self._facts.devices
        )

    def listen(self, on_xid: Callable[[DeviceIndex, int], None]) -> None:
        """Do nothing: nobody reports of a declared device."""

    def close(self) -> None:
        """Do nothing."""


def _device(entry: DeclaredDevice) -> Device:
    return Device(
        index=DeviceIndex(entry.index),
        name=entry.name,
        vram_total_bytes=bytes_from_mib(entry.vram_total_mb),
        compute_capability=entry.compute_capability,
    )
