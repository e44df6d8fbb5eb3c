"""Who may have which memory: the budgets, and waiting for what is about to be free."""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping

import msgspec

from cortex_core.device import DeviceReading
from cortex_core.errors import InsufficientSleepMemoryError, InsufficientVramError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.server.clock import Clock
from cortex_core.units import mib_from_bytes
from neuron.lifecycle.budget import Budget, Holding, SleepBudget
from neuron.lifecycle.condition import hopeless, usable_devices
from neuron.lifecycle.selection import select_devices
from neuron.ports import DeviceFacts, MemoryGauge
from neuron.supervisor.waiting import within

logger = logging.getLogger(__name__)

# An engine's processes are gone when it is closed; the driver needs a moment to notice.
_SETTLE_TIMEOUT_S = 10.0
_SETTLE_INTERVAL_S = 0.2

# Share of the measured memory that must be back; neighbours on the device move the rest.
_SETTLE_SHARE = 0.8

# Two readings that differ by less show that nothing is being freed any more.
_STILL_BYTES = 16 << 20


class Memory:
    """The one owner of the budgets.

    Args:
        facts: the devices.
        gauge: shows when memory is really back; `None` for declared devices.
        clock: bounds the waits.
        wait_s: how long a reservation waits for memory that is being freed.
        sleep_bytes: host memory that sleeping models may hold together.
    """

    def __init__(
        self,
        facts: DeviceFacts,
        gauge: MemoryGauge | None,
        clock: Clock,
        wait_s: float,
        sleep_bytes: int = 0,
    ) -> None:
        self._facts = facts
        self._gauge = gauge
        self._clock = clock
        self._wait_s = wait_s
        self._freeing: set[ModelId] = set()
        self._changed = asyncio.Event()
        self._changed_at = -math.inf
        self.broken: Mapping[DeviceIndex, str] = {}
        """Devices on which nothing can be loaded, with the reasons."""
        self.poisoned: Mapping[DeviceIndex, str] = {}
        """Those of them that do not come back by themselves."""
        self.budget = Budget.from_devices(facts.devices)
        self.sleep_budget = SleepBudget(total_bytes=sleep_bytes)

    async def reserve(
        self,
        spec: ModelSpec,
        on_wait: Callable[[], None],
        weak: Container[DeviceIndex] = (),
    ) -> tuple[DeviceIndex, ...]:
        """Return devices for `spec`, with its estimate reserved on them.

        Args:
            spec: a checked spec.
            on_wait: called when memory that is being freed is waited for.
            weak: devices that are not chosen, as they cannot run it.

        Raises:
            InvalidRequestError: the devices make no sense here.
            InsufficientVramError: there is no room, or not in time.
            ModelLoadFailedError: devices that it needs cannot be used.
        """

        def take() -> tuple[DeviceIndex, ...]:
            usable = usable_devices(spec, self._facts.devices, self.broken)
            able = [device for device in usable if device.index not in weak]
            devices = select_devices(spec, able, self.budget, self._facts.links)
            self._set(self.budget.with_reserved(spec.model, devices, spec.vram_bytes or 0))
            return devices

        return await self._in_time(take, on_wait)

    def hopeless(self, spec: ModelSpec) -> str | None:
        """Return why no device is left for `spec`; `None` while there may be one."""
        return hopeless(spec, self._facts.devices, self.poisoned)

    async def reserve_again(self, spec: ModelSpec, on_wait: Callable[[], None]) -> None:
        """Take back, for a model that sleeps, what it held before, where it held it.

        Args:
            spec: as it was loaded.
            on_wait: called when memory that is being freed is waited for.

        Raises:
            InsufficientVramError: there is no room, or not in time.
        """

        def take() -> tuple[DeviceIndex, ...]:
            holding = self.budget.holdings.get(spec.model)
            if holding is None:
                return ()
            again = msgspec.structs.replace(
                spec,
                devices=holding.devices,
                tensor_parallel=None,
                pipeline_parallel=None,
                vram_bytes=holding.awake_bytes,
            )
            rest = self.budget.with_released(spec.model)
            select_devices(again, usable_devices(again, self._facts.devices, self.broken), rest)
            self._set(self.budget.with_awake(spec.model))
            return holding.devices

        await self._in_time(take, on_wait)

    async def measure(
        self, model: ModelId, told_bytes: int | None, before: dict[DeviceIndex, int]
    ) -> None:
        """Replace the estimate of `model` by what its engine holds.

        Args:
            model: just loaded, with its devices still held.
            told_bytes: what the engine says; `None` has the driver's readings compared.
            before: memory in use before the load, as `used` said.
        """
        if told_bytes is None and before:
            now = await self.used(model)
            taken = (now[index] - before[index] for index in now.keys() & before.keys())
            # An engine on the CPU takes nothing of the devices that it was given.
            told_bytes = sum(max(0, size) for size in taken) or None
        self._set(self.budget.with_measured(model, told_bytes))

    def measured_bytes(self, model: ModelId) -> int | None:
        """Return what was measured of `model`; `None` when it is an estimate, or not here."""
        holding = self.budget.holdings.get(model)
        return holding.size_bytes if holding is not None and holding.is_measured else None

    def hold_host(self, model: ModelId, size_bytes: int) -> None:
        """Take host memory for a model that is put to sleep.

        Raises:
            InsufficientSleepMemoryError: the others that sleep hold too much.
        """
        budget = self.sleep_budget
        if not budget.has_room(size_bytes):
            free_bytes = max(0, budget.total_bytes - budget.used_bytes)
            raise InsufficientSleepMemoryError(
                f"{model!r} would hold {mib_from_bytes(size_bytes)} MiB of host memory asleep, "
                f"and {mib_from_bytes(free_bytes)} of {mib_from_bytes(budget.total_bytes)} MiB "
                "are left for that",
                needed_bytes=size_bytes,
                free_bytes=free_bytes,
            )
        self.sleep_budget = budget.with_held(model, size_bytes)

    def will_free(self, model: ModelId) -> None:
        """Say that `release` comes; meanwhile reservations wait for it."""
        self._freeing.add(model)

    def fell_asleep(self, model: ModelId, left_bytes: int) -> None:
        """Free what `model` holds but for what its sleeping engine keeps of the devices."""
        self._freeing.discard(model)
        self._set(self.budget.with_asleep(model, left_bytes))

    def woke(self, model: ModelId) -> None:
        """Free the host memory of a model that slept."""
        self.sleep_budget = self.sleep_budget.with_released(model)

    def release(self, model: ModelId) -> None:
        """Free what `model` holds, on devices and in the host."""
        self._freeing.discard(model)
        self.woke(model)
        self._set(self.budget.with_released(model))

    async def left_asleep(self, model: ModelId, before: dict[DeviceIndex, int]) -> int:
        """Return what an engine that was just put to sleep keeps, over all its devices.

        Args:
            model: its model.
            before: memory in use before it slept, as `used` said.
        """
        holding = self.budget.holdings.get(model)
        if self._gauge is None or holding is None or not before:
            return 0
        deadline = self._clock.now() + _SETTLE_TIMEOUT_S
        last = await self._gauge.used_bytes(holding.devices)
        while self._clock.now() < deadline:
            await self._clock.sleep(_SETTLE_INTERVAL_S)
            now = await self._gauge.used_bytes(holding.devices)
            is_still = all(abs(now[index] - last.get(index, 0)) < _STILL_BYTES for index in now)
            last = now
            if is_still:
                break
        freed = sum(max(0, before[index] - last[index]) for index in last if index in before)
        return max(0, holding.size_bytes - freed)

    async def used(self, model: ModelId) -> dict[DeviceIndex, int]:
        """Return a fresh reading of a model's devices; empty where nothing is measured."""
        holding = self.budget.holdings.get(model)
        if self._gauge is None or holding is None:
            return {}
        return await self._gauge.used_bytes(holding.devices)

    @contextlib.asynccontextmanager
    async def settled(self, model: ModelId) -> AsyncIterator[None]:
        """Close an engine inside; ends when the driver shows its memory free, or a bound is over."""
        holding = self.budget.holdings.get(model)
        if self._gauge is None or holding is None or not holding.is_measured:
            yield
            return
        before = await self._gauge.used_bytes(holding.devices)
        yield
        self._note_leaks(model, await self._until_back(self._gauge, holding, before))

    def reconcile(self, readings: Iterable[DeviceReading], begun_at: float) -> None:
        """Take what the driver says for what it is, where nothing moves.

        Args:
            readings: of the devices.
            begun_at: monotonic seconds at which they were begun to be taken; those that are older
                than the latest change say nothing.
        """
        if self._gauge is None or self._freeing or begun_at <= self._changed_at:
            return
        for reading in readings:
            if reading.vram_used_bytes is not None:
                self.budget = self.budget.with_used(reading.index, reading.vram_used_bytes)
        self._changed.set()

    def leaky(self, bound_bytes: int) -> frozenset[DeviceIndex]:
        """Return the devices on which more than `bound_bytes` were not given back."""
        leaked = self.budget.leaked.items()
        return frozenset(device for device, size in leaked if size > bound_bytes)

    def forget_leaks(self, devices: frozenset[DeviceIndex] | None) -> None:
        """Blame nobody any more for what is left on `devices`; `None` means all."""
        for device in self.budget.totals if devices is None else devices:
            self.budget = self.budget.without_leak(device)

    async def _until_back(
        self, gauge: MemoryGauge, holding: Holding, before: dict[DeviceIndex, int]
    ) -> dict[DeviceIndex, int]:
        """Return what is not back in time, by device; empty when all is."""
        back = _SETTLE_SHARE * holding.share_bytes
        deadline = self._clock.now() + _SETTLE_TIMEOUT_S
        now: dict[DeviceIndex, int] = {}
        while self._clock.now() < deadline:
            now = await gauge.used_bytes(holding.devices)
            if all(now[index] <= before.get(index, 0) - back for index in now if index in before):
                return {}
            await self._clock.sleep(_SETTLE_INTERVAL_S)
        known = now.keys() & before.keys()
        due = {index: now[index] - before[index] + holding.share_bytes for index in known}
        return {index: min(size, holding.share_bytes) for index, size in due.items() if size > 0}

    def _note_leaks(self, model: ModelId, left: Mapping[DeviceIndex, int]) -> None:
        for device, size in left.items():
            logger.warning(
                "memory not given back",
                extra={"model": model, "device": device, "leaked_bytes": size},
            )
            self.budget = self.budget.with_leak(device, size)

    async def _in_time(
        self, take: Callable[[], tuple[DeviceIndex, ...]], on_wait: Callable[[], None]
    ) -> tuple[DeviceIndex, ...]:
        """Return what `take` returns, as soon as what is being freed lets it."""
        deadline = self._clock.now() + self._wait_s
        while True:
            try:
                return take()
            except InsufficientVramError:
                left_s = deadline - self._clock.now()
                if left_s <= 0 or not self._freeing & set(self.budget.holdings):
                    raise
            on_wait()
            self._changed.clear()
            await within(self._clock, left_s, self._changed.wait())

    def _set(self, budget: Budget) -> None:
        self.budget = budget
        self._changed_at = self._clock.now()
        self._changed.set()
