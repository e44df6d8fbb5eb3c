"""Whether a device is trusted although its driver says that it is well.

A device may fail every program while nothing is reported of it: then the engines tell, and only a
process that begins anew finds out whether it was the device or what this one holds of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import msgspec

from cortex_core.device import DeviceCondition, DeviceReading
from cortex_core.ids import DeviceIndex, ModelId

LOST_AFTER = 3
"""Engines in a row that fail on a device with CUDA errors before it is not trusted any more."""

LOST_BY = 2
"""Models that those engines are of, at least: one model alone may itself be what is wrong."""

HOUR_S = 3600.0


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """Which engines failed on which device with CUDA errors, since one came up there."""

    failed: Mapping[DeviceIndex, tuple[ModelId, ...]] = msgspec.field(default_factory=dict)
    """The models of those engines, n >= 1 for every device that is named, the latest last."""

    def with_failure(self, devices: Iterable[DeviceIndex], model: ModelId) -> Self:
        """Return the record after an engine that used `devices` failed with a CUDA error."""
        failed = dict(self.failed)
        for device in devices:
            # More are of no use, but for the models that they are of.
            failed[device] = (*failed.get(device, ()), model)[-LOST_AFTER * LOST_BY :]
        return msgspec.structs.replace(self, failed=failed)

    def with_success(self, devices: Iterable[DeviceIndex]) -> Self:
        """Return the record after an engine on `devices` came up and answered as it should."""
        well = frozenset(devices)
        failed = {index: models for index, models in self.failed.items() if index not in well}
        return msgspec.structs.replace(self, failed=failed)

    def lost(self) -> Mapping[DeviceIndex, str]:
        """Return the devices that are not trusted any more, with the reasons."""
        return {
            index: f"{len(models)} engines in a row failed there with CUDA errors"
            for index, models in self.failed.items()
            if len(models) >= LOST_AFTER and len(set(models)) >= LOST_BY
        }


def distrusted(
    readings: Iterable[DeviceReading], lost: Mapping[DeviceIndex, str]
) -> tuple[DeviceReading, ...]:
    """Return readings in which devices that are not trusted are poisoned.

    Args:
        readings: judged already; what cannot be used anyway keeps its own reason.
        lost: see `Trust.lost`.
    """
    return tuple(
        msgspec.structs.replace(
            reading,
            condition=DeviceCondition.POISONED,
            condition_reason=lost[reading.index],
        )
        if reading.index in lost and reading.condition.is_usable
        else reading
        for reading in readings
    )


def may_start_afresh(past: Sequence[float], now: float, most_per_hour: int) -> bool:
    """Return whether the daemon may end in order to be started anew.

    Args:
        past: epoch seconds at which it has done so.
        now: epoch seconds; clocks that were set back make nothing more likely.
        most_per_hour: times that it may within an hour; 0 never.
    """
    return sum(abs(now - at) < HOUR_S for at in past) < most_per_hour
