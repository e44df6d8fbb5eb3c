"""Whether a node could ever hold a model (feasible) and whether it can now (fits)."""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.device import Device
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import DeviceIndex, ReplicaId
from cortex_core.units import bytes_from_mib, mib_from_bytes


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that a model would take on a node."""

    devices: tuple[DeviceIndex, ...]
    """In rank order; empty on a node without devices."""
    free_bytes: int
    """Free memory of these devices together, before the load."""


def infeasible_reason(profile: Profile, node: NodeState) -> str | None:
    """Return why `node` could never hold the model, or `None` when it could.

    A node whose facts are not known yet gives a reason that says so.
    """
    if profile.pinned_on and node.name not in profile.pinned_on:
        return f"the model is pinned on {', '.join(profile.pinned_on)}"
    facts = node.facts
    if facts is None:
        return "nothing is known of the node yet"
    if profile.harness not in facts.harnesses:
        known = ", ".join(facts.harnesses) or "none"
        return f"it has no harness {profile.harness!r} (it has: {known})"
    if not facts.devices:
        return _without_devices(profile, facts.cuda_unavailable_reason)
    able = [device for device in facts.devices if _is_able(device, profile)]
    if len(able) < profile.min_devices:
        need = mib_from_bytes(_share_bytes(profile))
        sizes = ", ".join(str(mib_from_bytes(device.vram_total_bytes)) for device in facts.devices)
        return (
            f"it needs {profile.min_devices} device(s) of {need} MiB each;"
            f" the node's have {sizes} MiB"
        )
    return None


def find_fit(profile: Profile, node: NodeState, free: Mapping[DeviceIndex, int]) -> Fit | None:
    """Return the devices with the most free memory that hold the model now, or `None`.

    Args:
        profile: a model that is feasible on `node`.
        node: a node whose facts are known.
        free: free bytes by device, as `free_bytes` gives them.
    """
    assert node.facts is not None
    if not node.facts.devices:
        return Fit(devices=(), free_bytes=0)
    need = _share_bytes(profile)
    roomy = [
        device
        for device in node.facts.devices
        if _is_able(device, profile) and free[device.index] >= need
    ]
    if len(roomy) < profile.min_devices:
        return None
    roomy.sort(key=lambda device: (-free[device.index], device.index))
    chosen = roomy[: profile.min_devices]
    return Fit(
        devices=tuple(sorted(device.index for device in chosen)),
        free_bytes=sum(free[device.index] for device in chosen),
    )


def free_bytes(state: FleetState, catalogue: Catalogue, node: NodeState) -> dict[DeviceIndex, int]:
    """Return free memory by device: what the driver says, less what is promised already.

    A replica that still loads, and a load that is on its way, are counted with their estimate,
    because the driver does not show them yet. An unknown estimate counts as nothing.
    """
    if node.facts is None:
        return {}
    claimed = _claims(state, catalogue, node)
    free = {}
    for device in node.facts.devices:
        reading = node.readings.get(device.index)
        left = device.vram_total_bytes - claimed.get(device.index, 0)
        if reading is not None and reading.vram_free_bytes is not None:
            left = min(left, reading.vram_free_bytes)
        free[device.index] = max(0, left)
    return free


def _claims(state: FleetState, catalogue: Catalogue, node: NodeState) -> dict[DeviceIndex, int]:
    claims: list[tuple[tuple[DeviceIndex, ...], int | None]] = []
    for model, replica in node.replicas.items():
        if replica.holds_memory:
            profile = catalogue.profiles.get(model)
            estimate = profile.vram_bytes if profile else None
            claims.append(
                (
                    replica.devices,
                    estimate if replica.vram_used_bytes is None else replica.vram_used_bytes,
                )
            )
    for target, command in state.commands.items():
        known = node.replicas.get(target.model)
        if target.node == node.name and (known is None or not known.holds_memory):
            claims.append((command.devices, command.vram_bytes))
    claimed: dict[DeviceIndex, int] = {}
    for devices, size in claims:
        for index in devices:
            claimed[index] = claimed.get(index, 0) + (size or 0) // len(devices)
    return claimed


def _without_devices(profile: Profile, cuda_reason: str | None) -> str | None:
    # A host without devices runs models in its own memory, which the catalogue does not size.
    if profile.min_devices == 1 and not profile.min_device_vram_mb:
        return None
    why = f" ({cuda_reason})" if cuda_reason else ""
    return f"it has no devices{why}"


def _is_able(device: Device, profile: Profile) -> bool:
    need = max(_share_bytes(profile), bytes_from_mib(profile.min_device_vram_mb))
    return device.vram_total_bytes >= need


def _share_bytes(profile: Profile) -> int:
    return (profile.vram_bytes or 0) // profile.min_devices


def cooling_down(state: FleetState, replica: ReplicaId, now: float) -> bool:
    """Whether the last load of `replica` failed too recently to try again."""
    failure = state.failures.get(replica)
    return failure is not None and now < failure.retry_at
