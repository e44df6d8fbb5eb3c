"""The latest reading of every device, taken in the background."""

import asyncio
from collections.abc import Callable

from cortex_core.device import DeviceCondition, DeviceReading
from cortex_core.ids import DeviceIndex
from cortex_core.server.clock import Clock
from neuron.devices.driver import DriverThread
from neuron.lifecycle.condition import NO_FAULTS, Faults, judged
from neuron.ports import DeviceFacts, DeviceSource

# A driver needs well under a second to start; one that takes longer than this is stuck.
_DISCOVERY_TIMEOUT_S = 20.0

# A reading takes milliseconds; a driver that takes longer than this is stuck.
_READING_TIMEOUT_S = 5.0

# After so many missed readings the last one says nothing of now.
_STALE_INTERVALS = 10


class DeviceMonitor:
    """Discovers devices once and reads them again and again.

    Args:
        source: asked in a thread of its own.
        clock: says when it is time.
        interval_s: between two readings.
        timeout_s: how long a fresh reading is waited for.
    """

    def __init__(
        self,
        source: DeviceSource,
        clock: Clock,
        interval_s: float,
        timeout_s: float = _READING_TIMEOUT_S,
    ) -> None:
        self._source = source
        self._clock = clock
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._thread = DriverThread()
        self._readings: tuple[DeviceReading, ...] = ()
        self._told: tuple[DeviceReading, ...] = ()
        self._faults: dict[DeviceIndex, Faults] = {}
        self._read_at = 0.0
        self.begun_at = 0.0
        """Monotonic seconds at which the latest reading was begun to be taken."""
        self.facts = DeviceFacts()

    async def discover(self) -> DeviceFacts:
        """Ask for the devices; a driver that does not answer is a reason, not a wait."""
        try:
            async with asyncio.timeout(_DISCOVERY_TIMEOUT_S):
                self.facts = await self._thread.call(self._source.discover)
                await self.refresh()
        except TimeoutError:
            self.facts = DeviceFacts(
                unavailable_reason=f"the driver did not answer within {_DISCOVERY_TIMEOUT_S:.0f} s"
            )
        return self.facts

    async def run(
        self, on_reading: Callable[[], None], on_xid: Callable[[DeviceIndex, int], None]
    ) -> None:
        """Read for ever.

        Args:
            on_reading: called after each reading, and when one does not come.
            on_xid: called with a device and what it reported, after that was noted.
        """
        loop = asyncio.get_running_loop()

        def note(device: DeviceIndex, xid: int) -> None:
            self._faults[device] = self._faults.get(device, NO_FAULTS).with_xid(xid)
            self._readings = self._judged(self._readings)
            on_xid(device, xid)

        def tell(device: DeviceIndex, xid: int) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(note, device, xid)

        await self._thread.call(lambda: self._source.listen(tell))
        bound_s = min(self._timeout_s, _STALE_INTERVALS * self._interval_s)
        async with asyncio.TaskGroup() as tasks:
            reading: asyncio.Task[None] | None = None
            while True:
                await self._clock.sleep(self._interval_s)
                if reading is None or reading.done():
                    reading = tasks.create_task(self.refresh())
                # A driver that hangs has to be told of as well, and is not asked again meanwhile.
                await asyncio.wait([reading], timeout=bound_s)
                on_reading()

    async def refresh(self) -> None:
        """Take one reading."""
        begun_at = self._clock.now()
        taken = await self._thread.call(self._source.read)
        self._forgive(taken)
        self._readings = self._judged(taken)
        self.begun_at = begun_at
        self._read_at = self._clock.now()

    def latest(self) -> tuple[DeviceReading, ...]:
        """Return the last reading at once; all unknown when it is too old to mean anything.

        A device that could not be used does not get well by that.
        """
        if self._clock.now() - self._read_at > _STALE_INTERVALS * self._interval_s:
            return tuple(
                DeviceReading(
                    index=reading.index,
                    condition_reason=f"the driver has not answered for {_STALE_INTERVALS} readings",
                )
                if reading.condition.is_usable
                else DeviceReading(
                    index=reading.index,
                    condition=reading.condition,
                    condition_reason=reading.condition_reason,
                )
                for reading in self._readings
            )
        return self._readings

    def xids(self, device: DeviceIndex) -> tuple[int, ...]:
        """Return what a device reported lately, the last one last."""
        return self._faults.get(device, NO_FAULTS).xids

    async def used_bytes(self, devices: tuple[DeviceIndex, ...]) -> dict[DeviceIndex, int]:
        """Return a fresh reading of the memory in use; devices that are not known are absent.

        All are when the driver does not answer in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.refresh()
        except TimeoutError:
            return {}
        return {
            reading.index: reading.vram_used_bytes
            for reading in self._readings
            if reading.index in devices and reading.vram_used_bytes is not None
        }

    def _judged(self, readings: tuple[DeviceReading, ...]) -> tuple[DeviceReading, ...]:
        return tuple(
            judged(reading, self._faults.get(reading.index, NO_FAULTS)) for reading in readings
        )

    def _forgive(self, taken: tuple[DeviceReading, ...]) -> None:
        """Forget what a device reported that the driver had lost and has again: it is reset."""
        lost = {one.index for one in self._told if one.condition is DeviceCondition.GONE}
        for reading in taken:
            if reading.index in lost and reading.condition is not DeviceCondition.GONE:
                self._faults.pop(reading.index, None)
        self._told = taken

    def close(self) -> None:
        """Let go of the driver."""
        self._thread.close(self._source.close)
