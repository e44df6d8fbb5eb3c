"""A driver's reading of memory that is what a test and its engines make it."""

from cortex_core.ids import DeviceIndex


class FakeGauge:
    """Memory in use by device."""

    def __init__(self, devices: int) -> None:
        self.used = {DeviceIndex(number): 0 for number in range(devices)}

    def move(self, devices: tuple[DeviceIndex, ...], size_bytes: int) -> None:
        """Take memory on each of `devices`, or give it back when it is negative."""
        for device in devices:
            self.used[device] += size_bytes

    async def used_bytes(self, devices: tuple[DeviceIndex, ...]) -> dict[DeviceIndex, int]:
        """Return the memory in use."""
        return {device: self.used[device] for device in devices}
