"""Who may have which memory: the budget, and waiting for what is about to be free."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from cortex_core.errors import InsufficientVramError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.server.clock import Clock
from neuron.lifecycle.budget import Budget
from neuron.lifecycle.selection import select_devices
from neuron.ports import DeviceFacts, MemoryGauge
from neuron.supervisor.waiting import within

# An engine's processes are gone when it is closed; the driver needs a moment to notice.
_SETTLE_TIMEOUT_S = 10.0
_SETTLE_INTERVAL_S = 0.2

# Share of the measured memory that must be back; neighbours on the device move the rest.
_SETTLE_SHARE = 0.8


class Memory:
    """The one owner of the budget.

    Args:
        facts: the devices.
        gauge: shows when memory is really back; `None` for declared devices.
        clock: bounds the waits.
        wait_s: how long a reservation waits for memory that is being freed.
    """

    def __init__(
        self, facts: DeviceFacts, gauge: MemoryGauge | None, clock: Clock, wait_s: float
    ) -> None:
        self._facts = facts
        self._gauge = gauge
        self._clock = clock
        self._wait_s = wait_s
        self._freeing: set[ModelId] = set()
        self._changed = asyncio.Event()
        self.budget = Budget.from_devices(facts.devices)

    async def reserve(
        self, spec: ModelSpec, on_wait: Callable[[], None]
    ) -> tuple[DeviceIndex, ...]:
        """Return devices for `spec`, with its estimate reserved on them.

        Args:
            spec: a checked spec.
            on_wait: called when memory that is being freed is waited for.

        Raises:
            InvalidRequestError: the devices make no sense here.
            InsufficientVramError: there is no room, or not in time.
        """
        deadline = self._clock.now() + self._wait_s
        while True:
            try:
                devices = select_devices(spec, self._facts.devices, self.budget)
            except InsufficientVramError:
                left_s = deadline - self._clock.now()
                if left_s <= 0 or not self._freeing & set(self.budget.holdings):
                    raise
                on_wait()
                self._changed.clear()
                await within(self._clock, left_s, self._changed.wait())
                continue
            self.budget = self.budget.with_reserved(spec.model, devices, spec.vram_bytes or 0)
            return devices

    def measure(self, model: ModelId, size_bytes: int | None) -> None:
        """Replace the estimate of `model` by what its engine holds."""
        self.budget = self.budget.with_measured(model, size_bytes)
        self._changed.set()

    def will_free(self, model: ModelId) -> None:
        """Say that `release` comes; meanwhile reservations wait for it."""
        self._freeing.add(model)

    def release(self, model: ModelId) -> None:
        """Free what `model` holds."""
        self._freeing.discard(model)
        self.budget = self.budget.with_released(model)
        self._changed.set()

    @contextlib.asynccontextmanager
    async def settled(self, model: ModelId) -> AsyncIterator[None]:
        """Close an engine inside; ends when the driver shows its memory free, or a bound is over."""
        holding = self.budget.holdings.get(model)
        if self._gauge is None or holding is None or not holding.is_measured:
            yield
            return
        before = await self._gauge.used_bytes(holding.devices)
        yield
        back = _SETTLE_SHARE * holding.share_bytes
        deadline = self._clock.now() + _SETTLE_TIMEOUT_S
        while self._clock.now() < deadline:
            now = await self._gauge.used_bytes(holding.devices)
            if all(now[index] <= before.get(index, 0) - back for index in now if index in before):
                return
            await self._clock.sleep(_SETTLE_INTERVAL_S)
