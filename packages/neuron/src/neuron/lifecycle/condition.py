"""Whether a device can be used: from what the driver says of it and from what it reported."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.errors import ModelLoadFailedError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex
from neuron.lifecycle.xids import XidAction, action_of

_XIDS_KEPT = 8
"""Reports that are remembered of a device beside those that decide; for whoever looks."""

_SLOWED = ("hardware_slowdown", "hardware_thermal", "software_thermal", "power_brake")
"""Reasons for low clocks that are not a matter of settings: something is too hot, or lacks
power. A power cap is reached by every device that works hard."""

_NEEDS_RESET = {"reset": "a reset", "bus_reset": "a reset of its bus", "reboot": "a reboot"}

_TO_BE_DRAINED = {
    "drain_p2p": "no memory shared with its peers",
    "drain_and_reset": "a reset when nothing runs on it",
    "recover_imex": "its IMEX domain recovered",
}
"""NVIDIA, "GPU Memory Error Management", error recovery and response flags,
https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/error-recovery-and-response-flags.html."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What a device reported since it was found."""

    xids: tuple[int, ...] = ()
    """The latest, the last one last."""
    fatal: int | None = None
    """The first after which it cannot be used; `None` while it can."""
    lasting: int | None = None
    """The latest after which somebody has to look."""

    def with_xid(self, xid: int) -> "Faults":
        """Return what is known after one more report."""
        action = action_of(xid)
        is_fatal = action in (XidAction.RESET, XidAction.GONE)
        return msgspec.structs.replace(
            self,
            xids=(*self.xids, xid)[-_XIDS_KEPT:],
            fatal=xid if is_fatal and self.fatal is None else self.fatal,
            lasting=xid if action is XidAction.LOOK else self.lasting,
        )


NO_FAULTS = Faults()


def judged(reading: DeviceReading, faults: Faults = NO_FAULTS) -> DeviceReading:
    """Return `reading` with the condition that follows from it and from `faults`.

    What the driver itself says of the condition stands, unless a report says worse. The worst
    decides, and the reason is its own.
    """
    signs = _signs(reading, faults)
    condition, reason = max(signs, key=lambda sign: (_RANKS[sign[0]], sign[1] is not None))
    return msgspec.structs.replace(reading, condition=condition, condition_reason=reason)


def broken_devices(readings: Iterable[DeviceReading]) -> Mapping[DeviceIndex, str]:
    """Return the devices on which nothing can be loaded, with the reasons."""
    return {
        reading.index: f"CUDA device {reading.index} is {reading.condition}"
        + (f": {reading.condition_reason}" if reading.condition_reason else "")
        for reading in readings
        if not reading.condition.is_usable
    }


def poisoned_devices(readings: Iterable[DeviceReading]) -> Mapping[DeviceIndex, str]:
    """Return those of `broken_devices` that do not come back by themselves."""
    return broken_devices(
        reading for reading in readings if reading.condition is DeviceCondition.POISONED
    )


def hopeless(
    spec: ModelSpec, devices: Sequence[Device], poisoned: Mapping[DeviceIndex, str]
) -> str | None:
    """Return why a model cannot come back, as every device that it may have is poisoned.

    Args:
        spec: fits a node with `devices`, were they all well.
        devices: of the node.
        poisoned: reasons, as `poisoned_devices` gives them.

    Returns:
        `None` while there may be a device for it.
    """
    try:
        usable_devices(spec, devices, poisoned)
    except ModelLoadFailedError as error:
        return error.message
    return None


def usable_devices(
    spec: ModelSpec, devices: Sequence[Device], broken: Mapping[DeviceIndex, str]
) -> tuple[Device, ...]:
    """Return the devices of a node that `spec` may be given.

    Args:
        spec: fits a node with `devices`, were they all well.
        devices: of the node.
        broken: reasons, as `broken_devices` gives them.

    Raises:
        ModelLoadFailedError: one that it names cannot be used, or too few can.
    """
    usable = tuple(device for device in devices if device.index not in broken)
    named = [index for index in spec.devices if index in broken]
    if named or (devices and len(usable) < spec.ranks):
        reasons = "; ".join(broken[index] for index in sorted(named or broken))
        raise ModelLoadFailedError(f"{spec.model!r} cannot be loaded: {reasons}")
    return usable


_Sign = tuple[DeviceCondition, str | None]

_RANKS = {
    DeviceCondition.UNKNOWN: 0,
    DeviceCondition.OK: 1,
    DeviceCondition.DEGRADED: 2,
    DeviceCondition.POISONED: 3,
    DeviceCondition.GONE: 4,
}


def _signs(reading: DeviceReading, faults: Faults) -> Sequence[_Sign]:
    signs: list[_Sign] = [(reading.condition, reading.condition_reason)]
    if _says_anything(reading):
        signs.append((DeviceCondition.OK, None))
    if faults.fatal is not None:
        signs.append(_fatal(faults.fatal))
    action = reading.recovery_action
    if action in _NEEDS_RESET:
        words = f"the driver says that it needs {_NEEDS_RESET[action]}"
        signs.append((DeviceCondition.POISONED, words))
    signs.extend((DeviceCondition.DEGRADED, words) for words in _worries(reading, faults))
    return signs


def _fatal(xid: int) -> _Sign:
    if action_of(xid) is XidAction.GONE:
        return DeviceCondition.GONE, f"it fell off the bus (Xid {xid})"
    return DeviceCondition.POISONED, f"it has to be reset (Xid {xid})"


def _worries(reading: DeviceReading, faults: Faults) -> Sequence[str]:
    """Return what somebody should look at, the most urgent first."""
    worries = []
    if reading.is_repair_failed:
        worries.append("broken memory could not be replaced")
    if reading.recovery_action in _TO_BE_DRAINED:
        worries.append(f"the driver says that it needs {_TO_BE_DRAINED[reading.recovery_action]}")
    if reading.is_repair_pending:
        worries.append("broken memory is replaced at the next reset")
    if faults.lasting is not None:
        worries.append(f"it reported Xid {faults.lasting}")
    slowed = [reason for reason in reading.throttled or () if reason in _SLOWED]
    if slowed:
        worries.append(f"it is slowed down: {', '.join(slowed)}")
    return worries


def _says_anything(reading: DeviceReading) -> bool:
    said = (reading.vram_used_bytes, reading.temp_c, reading.power_w, reading.utilization_ratio)
    return any(value is not None for value in said)
