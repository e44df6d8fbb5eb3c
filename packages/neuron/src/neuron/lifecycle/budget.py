"""The memory budget: what every model holds, or is about to, on every device and in the host."""

from collections.abc import Iterable, Mapping
from typing import Self

import msgspec

from cortex_core.device import Device
from cortex_core.harness import ModelInfo
from cortex_core.ids import DeviceIndex, ModelId


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one model."""

    devices: tuple[DeviceIndex, ...]
    """May be empty on a node without devices."""
    size_bytes: int
    """Over all its devices together."""
    is_measured: bool = False
    """Whether it was measured; otherwise it is an estimate."""
    awake_bytes: int | None = None
    """Of a model that sleeps: what it will hold again when it is woken."""

    @property
    def share_bytes(self) -> int:
        """Bytes on each of its devices, rounded up; 0 without devices."""
        return share_bytes(self.size_bytes, len(self.devices))


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of all devices and who holds it: reserved, then measured, then reconciled."""

    totals: Mapping[DeviceIndex, int] = msgspec.field(default_factory=dict)
    """Bytes of each device; 0 when the driver does not say, which turns its check off."""
    holdings: Mapping[ModelId, Holding] = msgspec.field(default_factory=dict)
    unheld: Mapping[DeviceIndex, int] = msgspec.field(default_factory=dict)
    """Bytes in use on each device that no model here accounts for: of other processes, or not
    given back. Absent is none."""
    leaked: Mapping[DeviceIndex, int] = msgspec.field(default_factory=dict)
    """What of `unheld` closed engines did not give back. Absent is none."""

    @classmethod
    def from_devices(cls, devices: Iterable[Device]) -> Self:
        """Return the budget of an empty node."""
        return cls(totals={device.index: device.vram_total_bytes for device in devices})

    def held_bytes(self, device: DeviceIndex) -> int:
        """Return what is held on `device`, estimates included."""
        return sum(
            holding.share_bytes for holding in self.holdings.values() if device in holding.devices
        )

    def free_bytes(self, device: DeviceIndex) -> int | None:
        """Return what is left on `device`, never negative; `None` when its size is not known."""
        total = self.totals[device]
        taken = self.held_bytes(device) + self.unheld.get(device, 0)
        return max(0, total - taken) if total else None

    def with_reserved(
        self, model: ModelId, devices: tuple[DeviceIndex, ...], size_bytes: int
    ) -> Self:
        """Return the budget with an estimate held for a load."""
        return self._with(model, Holding(devices=devices, size_bytes=size_bytes))

    def with_measured(self, model: ModelId, size_bytes: int | None) -> Self:
        """Return the budget with the estimate replaced; `None` was not measured and keeps it."""
        holding = self.holdings.get(model)
        if holding is None or size_bytes is None:
            return self
        return self._with(
            model, Holding(devices=holding.devices, size_bytes=size_bytes, is_measured=True)
        )

    def with_asleep(self, model: ModelId, left_bytes: int) -> Self:
        """Return the budget with `model` asleep: it keeps `left_bytes` of what it held."""
        holding = self.holdings.get(model)
        if holding is None:
            return self
        asleep = msgspec.structs.replace(
            holding, size_bytes=left_bytes, awake_bytes=holding.size_bytes
        )
        return self._with(model, asleep)

    def with_awake(self, model: ModelId) -> Self:
        """Return the budget with `model` holding again what it held before it slept."""
        holding = self.holdings.get(model)
        if holding is None or holding.awake_bytes is None:
            return self
        awake = msgspec.structs.replace(holding, size_bytes=holding.awake_bytes, awake_bytes=None)
        return self._with(model, awake)

    def with_released(self, model: ModelId) -> Self:
        """Return the budget without what `model` held; nothing when it held nothing."""
        rest = {name: held for name, held in self.holdings.items() if name != model}
        return msgspec.structs.replace(self, holdings=rest)

    def with_used(self, device: DeviceIndex, used_bytes: int) -> Self:
        """Return the budget reconciled with what the driver says is in use on `device`.

        What is used and not held belongs to somebody else. Nothing is concluded while a model
        there is held by an estimate: it may have taken any part of it so far.
        """
        is_estimated = any(
            device in holding.devices and not holding.is_measured
            for holding in self.holdings.values()
        )
        if is_estimated or device not in self.totals:
            return self
        unheld = max(0, used_bytes - self.held_bytes(device))
        # What came back late was no leak.
        leaked = min(self.leaked.get(device, 0), unheld)
        return msgspec.structs.replace(
            self,
            unheld={**self.unheld, device: unheld},
            leaked={**self.leaked, device: leaked},
        )

    def with_leak(self, device: DeviceIndex, size_bytes: int) -> Self:
        """Return the budget with memory that a closed engine did not give back."""
        return msgspec.structs.replace(
            self,
            unheld={**self.unheld, device: self.unheld.get(device, 0) + size_bytes},
            leaked={**self.leaked, device: self.leaked.get(device, 0) + size_bytes},
        )

    def without_leak(self, device: DeviceIndex) -> Self:
        """Return the budget with nobody blamed for what is in use and not held."""
        return msgspec.structs.replace(self, leaked={**self.leaked, device: 0})

    def _with(self, model: ModelId, holding: Holding) -> Self:
        return msgspec.structs.replace(self, holdings={**self.holdings, model: holding})


class SleepBudget(msgspec.Struct, frozen=True, kw_only=True):
    """Host memory for models that sleep."""

    total_bytes: int
    holdings: Mapping[ModelId, int] = msgspec.field(default_factory=dict)
    """Bytes of each, from the moment on at which it is put to sleep."""

    @property
    def used_bytes(self) -> int:
        """Bytes that all sleeping models hold together."""
        return sum(self.holdings.values())

    def has_room(self, size_bytes: int) -> bool:
        """Return whether a model that holds `size_bytes` may sleep too; 0 always has room."""
        return size_bytes == 0 or self.used_bytes + size_bytes <= self.total_bytes

    def with_held(self, model: ModelId, size_bytes: int) -> Self:
        """Return the budget with a model that sleeps, or is about to."""
        return msgspec.structs.replace(self, holdings={**self.holdings, model: size_bytes})

    def with_released(self, model: ModelId) -> Self:
        """Return the budget without what `model` held; nothing when it held nothing."""
        rest = {name: held for name, held in self.holdings.items() if name != model}
        return msgspec.structs.replace(self, holdings=rest)


def host_bytes(info: ModelInfo, level: int) -> int:
    """Return the host memory that a model will hold asleep at `level`, 0 at level 2."""
    if level > 1:
        return 0
    size_bytes = info.vram_bytes if info.sleep_bytes is None else info.sleep_bytes
    return size_bytes or 0


def share_bytes(size_bytes: int, devices: int) -> int:
    """Return an even share on each of `devices` devices, rounded up; 0 when there are none."""
    return -(-size_bytes // devices) if devices else 0
