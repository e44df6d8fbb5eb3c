"""Whether a node can hold a model now, and on which devices."""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.feasibility import is_able, share_bytes
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import DeviceIndex, ReplicaId
from cortex_core.replica import Replica, ReplicaStatus

READING_LAG_S = 5.0
"""For how long a reading may still show memory as taken that a replica has given back."""


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
    return _free(state, catalogue, node, leaving=False, has_readings=True)


def settled_bytes(
    state: FleetState, catalogue: Catalogue, node: NodeState, now: float
) -> dict[DeviceIndex, int]:
    """Return what will be free by device once that is gone which is going already.

    Replicas that are being unloaded count as gone, and readings that may be older than the
    latest unload as not made.
    """
    is_late = node.freed_at is not None and now - node.freed_at < READING_LAG_S
    return _free(state, catalogue, node, leaving=True, has_readings=not is_late)


def _free(
    state: FleetState, catalogue: Catalogue, node: NodeState, *, leaving: bool, has_readings: bool
) -> dict[DeviceIndex, int]:
    if node.facts is None:
        return {}
    held: dict[DeviceIndex, int] = {}
    gone: dict[DeviceIndex, int] = {}
    for model, replica in node.replicas.items():
        if replica.holds_memory:
            is_leaving = leaving and replica.status is ReplicaStatus.UNLOADING
            _add(gone if is_leaving else held, shares(replica, catalogue.profiles.get(model)))
    promised = _promised(state, catalogue, node, leaving=leaving)
    free = {}
    for device in node.facts.devices:
        index = device.index
        left = device.vram_total_bytes - held.get(index, 0)
        reading = node.readings.get(index)
        if has_readings and reading is not None and reading.vram_free_bytes is not None:
            left = min(left, reading.vram_free_bytes + gone.get(index, 0))
        free[index] = max(0, left - promised.get(index, 0))
    return free


def _promised(
    state: FleetState, catalogue: Catalogue, node: NodeState, *, leaving: bool
) -> dict[DeviceIndex, int]:
    """Return what no replica holds yet and somebody is to have, by device."""
    promised: dict[DeviceIndex, int] = {}
    for target, command in state.commands.items():
        known = node.replicas.get(target.model)
        if target.node == node.name and (known is None or not known.holds_memory):
            size = (command.vram_bytes or 0) // max(1, len(command.devices))
            _add(promised, dict.fromkeys(command.devices, size))
    for swap in state.swaps.values():
        if swap.node != node.name:
            continue
        # What its victims hold counts as theirs until it is free.
        theirs: dict[DeviceIndex, int] = {}
        for victim in swap.victims:
            replica = node.replicas.get(victim.replica.model)
            is_gone = leaving and replica is not None and replica.status is ReplicaStatus.UNLOADING
            if replica is not None and replica.holds_memory and not is_gone:
                _add(theirs, shares(replica, catalogue.profiles.get(victim.replica.model)))
        rest = {i: max(0, swap.share_bytes - theirs.get(i, 0)) for i in swap.devices}
        _add(promised, rest)
    return promised


def _add(to: dict[DeviceIndex, int], more: Mapping[DeviceIndex, int]) -> None:
    for index, size in more.items():
        to[index] = to.get(index, 0) + size


def shares(replica: Replica, profile: Profile | None) -> dict[DeviceIndex, int]:
    """Return what a replica holds of each of its devices, in bytes; 0 when nobody knows."""
    size = replica.vram_used_bytes
    if size is None and profile is not None:
        size = profile.vram_bytes
    return {index: (size or 0) // len(replica.devices) for index in replica.devices}


def cooling_down(state: FleetState, replica: ReplicaId, now: float) -> bool:
    """Whether the last load of `replica` failed too recently to try again."""
    failure = state.failures.get(replica)
    return failure is not None and now < failure.retry_at
