"""The sleep of a simulated engine: time by arithmetic, and whether it is itself afterwards."""

from cortex_core.server.clock import Clock
from cortex_core.units import MIB
from neuron.settings import Fault, SimulatedSettings


class Nap:
    """Sleeps and wakes of one engine.

    Args:
        size_bytes: its weights, which level 2 reads again.
        settings: how long everything takes.
        fault: what goes wrong.
        clock: passes the time.
    """

    def __init__(
        self, size_bytes: int, settings: SimulatedSettings, fault: Fault, clock: Clock
    ) -> None:
        self._size_bytes = size_bytes
        self._settings = settings
        self._fault = fault
        self._clock = clock
        self._has_slept = False
        self.level: int | None = None
        """At which it sleeps; `None` while it is awake."""

    @property
    def answers_rightly(self) -> bool:
        """Whether a known answer would be right now."""
        return self._fault.wrong_answer != ("wake" if self._has_slept else "load")

    async def begin(self, level: int) -> None:
        """Fall asleep."""
        await self._clock.sleep(self._settings.sleep_s * self._fault.slow)
        self.level = level

    async def end(self) -> None:
        """Wake up."""
        settings = self._settings
        duration_s = settings.load_s if settings.wake_s is None else settings.wake_s
        if self.level == 2 and settings.load_mb_per_s is not None:
            duration_s += self._size_bytes / MIB / settings.load_mb_per_s
        await self._clock.sleep(duration_s * self._fault.slow)
        self.level = None
        self._has_slept = True
