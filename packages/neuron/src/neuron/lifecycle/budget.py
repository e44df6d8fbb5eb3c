"""The memory budget: what every model holds, or is about to, on every device."""

from collections.abc import Iterable, Mapping
from typing import Self

import msgspec

from cortex_core.device import Device
from cortex_core.ids import DeviceIndex, ModelId


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one model."""

    devices: tuple[DeviceIndex, ...]
    """May be empty on a node without devices."""
    size_bytes: int
    """Over all its devices together."""
    is_measured: bool = False
    """Whether the engine said so; otherwise it is an estimate."""

    @property
    def share_bytes(self) -> int:
        """Bytes on each of its devices, rounded up; 0 without devices."""
        return share_bytes(self.size_bytes, len(self.devices))


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of all devices and who holds it."""

    totals: Mapping[DeviceIndex, int] = msgspec.field(default_factory=dict)
    """Bytes of each device; 0 when the driver does not say, which turns its check off."""
    holdings: Mapping[ModelId, Holding] = msgspec.field(default_factory=dict)

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
        return max(0, total - self.held_bytes(device)) if total else None

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

    def with_released(self, model: ModelId) -> Self:
        """Return the budget without what `model` held; nothing when it held nothing."""
        rest = {name: held for name, held in self.holdings.items() if name != model}
        return msgspec.structs.replace(self, holdings=rest)

    def _with(self, model: ModelId, holding: Holding) -> Self:
        return msgspec.structs.replace(self, holdings={**self.holdings, model: holding})


def share_bytes(size_bytes: int, devices: int) -> int:
    """Return an even share on each of `devices` devices, rounded up; 0 when there are none."""
    return -(-size_bytes // devices) if devices else 0
