"""Which devices a model gets."""

from collections.abc import Sequence

from cortex_core.device import Device
from cortex_core.errors import InsufficientVramError, InvalidRequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.units import mib_from_bytes
from neuron.lifecycle.budget import Budget, share_bytes


def select_devices(
    spec: ModelSpec, devices: Sequence[Device], budget: Budget
) -> tuple[DeviceIndex, ...]:
    """Return the devices for `spec`, in rank order; empty on a node without devices.

    Named devices are taken as they are. Otherwise the fullest devices that still have room are
    chosen, so that the emptiest stay free for larger models; the lower index wins a tie. A spec
    without an estimate needs nothing, and a device of unknown size has room.

    Raises:
        InvalidRequestError: the devices do not exist, or are not as many as are needed.
        InsufficientVramError: there is not enough memory now.
    """
    check_devices(spec, devices)
    if spec.devices:
        return _checked(spec, spec.devices, budget)
    if not devices:
        return ()
    count = spec.tensor_parallel or 1
    share = share_bytes(spec.vram_bytes or 0, count)
    free = {device.index: budget.free_bytes(device.index) for device in devices}
    roomy = [index for index in free if _has_room(free[index], share)]
    if len(roomy) >= count:
        return tuple(sorted(roomy, key=lambda index: (_rank(free[index]), index))[:count])
    freest = sorted(free, key=lambda index: (-_rank(free[index]), index))[:count]
    return _checked(spec, tuple(sorted(freest)), budget)


def check_devices(spec: ModelSpec, devices: Sequence[Device]) -> None:
    """Check that a node with `devices` could be meant by `spec` at all.

    Raises:
        InvalidRequestError: the devices do not exist, or are not as many as are needed.
    """
    known = {device.index for device in devices}
    missing = [index for index in spec.devices if index not in known]
    if missing:
        has = f"devices {sorted(known)}" if known else "no devices"
        raise InvalidRequestError(
            f"there is no device {missing[0]} here; this node has {has}", param="devices"
        )
    if len(set(spec.devices)) != len(spec.devices):
        raise InvalidRequestError("a device is named twice; name each once", param="devices")
    wanted = spec.tensor_parallel or 1
    if spec.devices and spec.tensor_parallel and wanted != len(spec.devices):
        raise InvalidRequestError(
            f"tensor_parallel is {wanted} but {len(spec.devices)} devices are named; "
            "make them equal",
            param="tensor_parallel",
        )
    if known and wanted > len(known):
        raise InvalidRequestError(
            f"it needs {wanted} devices and this node has {len(known)}", param="tensor_parallel"
        )


def _checked(
    spec: ModelSpec, chosen: tuple[DeviceIndex, ...], budget: Budget
) -> tuple[DeviceIndex, ...]:
    share = share_bytes(spec.vram_bytes or 0, len(chosen))
    frees = [budget.free_bytes(index) for index in chosen]
    if all(_has_room(free, share) for free in frees):
        return chosen
    needed = share * len(chosen)
    free_bytes = sum(free or 0 for free in frees)
    tightest = min(free for free in frees if free is not None)
    raise InsufficientVramError(
        f"{spec.model!r} needs {needed} bytes ({_mib(share)} on each of {len(chosen)}); "
        f"devices {list(chosen)} have {free_bytes} bytes free, {_mib(tightest)} on the fullest",
        needed_bytes=needed,
        free_bytes=free_bytes,
    )


def _has_room(free_bytes: int | None, share: int) -> bool:
    return free_bytes is None or free_bytes >= share


def _rank(free_bytes: int | None) -> float:
    # Unknown sizes sort as endless: first choice only when nothing else has room.
    return float("inf") if free_bytes is None else free_bytes


def _mib(size_bytes: int) -> str:
    return f"{mib_from_bytes(size_bytes)} MiB"
