"""Whether a node can hold a model now, and on which devices."""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.feasibility import is_able, share_bytes
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import DeviceIndex, ReplicaId
from cortex_core.replica import Replica


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that a model would take on a node."""

    devices: tuple[DeviceIndex, ...]
    """In rank order; empty on a node without devices."""
    free_bytes: int
    """Free memory of these devices together, before the load."""


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
    need = share_bytes(profile)
    roomy = [
        device
        for device in node.facts.devices
        if is_able(device, profile) and free[device.index] >= need
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
    because the driver does not show them yet. An unknown estimate counts as nothing. What is
    being freed for a model is kept for it.
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
    held = _held_by_victims(state, catalogue, node)
    claims += [
        ((index,), max(0, swap.share_bytes - held.get(index, 0)))
        for swap in state.swaps.values()
        if swap.node == node.name
        for index in swap.devices
    ]
    for target, command in state.commands.items():
        known = node.replicas.get(target.model)
        if target.node == node.name and (known is None or not known.holds_memory):
            claims.append((command.devices, command.vram_bytes))
    claimed: dict[DeviceIndex, int] = {}
    for devices, size in claims:
        for index in devices:
            claimed[index] = claimed.get(index, 0) + (size or 0) // len(devices)
    return claimed


def shares(replica: Replica, profile: Profile | None) -> dict[DeviceIndex, int]:
    """Return what a replica holds of each of its devices, in bytes; 0 when nobody knows."""
    size = replica.vram_used_bytes
    if size is None and profile is not None:
        size = profile.vram_bytes
    return {index: (size or 0) // len(replica.devices) for index in replica.devices}


def _held_by_victims(
    state: FleetState, catalogue: Catalogue, node: NodeState
) -> dict[DeviceIndex, int]:
    """Return what those hold who are being unloaded: it counts as theirs until it is free."""
    held: dict[DeviceIndex, int] = {}
    for swap in state.swaps.values():
        for victim in swap.victims:
            replica = node.replicas.get(victim.model) if victim.node == node.name else None
            if replica is not None and replica.holds_memory:
                for index, size in shares(replica, catalogue.profiles.get(victim.model)).items():
                    held[index] = held.get(index, 0) + size
    return held


def cooling_down(state: FleetState, replica: ReplicaId, now: float) -> bool:
    """Whether the last load of `replica` failed too recently to try again."""
    failure = state.failures.get(replica)
    return failure is not None and now < failure.retry_at
