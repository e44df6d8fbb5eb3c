"""The one owner of the record of devices on which engines fail."""

from collections.abc import Collection, Iterable, Mapping

from cortex_core.ids import DeviceIndex, ModelId
from neuron.lifecycle.recovery import FailureKind
from neuron.lifecycle.trust import Trust


class Trusting:
    """Keeps the record."""

    def __init__(self) -> None:
        self._record = Trust()
        self.broken: Collection[DeviceIndex] = ()
        """Devices that cannot be used; engines that end there tell nothing new of them."""

    def failed(self, devices: Iterable[DeviceIndex], model: ModelId, kind: FailureKind) -> None:
        """Note that an engine failed, which says nothing of its devices unless CUDA did."""
        if kind is FailureKind.CUDA:
            trusted = [device for device in devices if device not in self.broken]
            self._record = self._record.with_failure(trusted, model)

    def came_up(self, devices: Iterable[DeviceIndex]) -> None:
        """Note that an engine came up and answered as it should."""
        self._record = self._record.with_success(devices)

    def lost(self) -> Mapping[DeviceIndex, str]:
        """Return the devices that are not trusted any more, with the reasons."""
        return self._record.lost()
