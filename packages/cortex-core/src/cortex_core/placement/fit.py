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
    """Free memory of these devices together, before the load; for an adapter, which takes none, the
    places that its base's engine has for adapters."""


def find_fit(
    profile: Profile,
    node: NodeState,
    free: Mapping[DeviceIndex, int],
    only: tuple[DeviceIndex, ...] = (),
) -> Fit | None:
    """Return the devices with the most free memory that hold the model now, or `None`.

    Args:
        profile: a model that is feasible on `node`, with the size that it has there.
        node: a node whose facts are known.
        free: free bytes by device, as `free_bytes` gives them.
        only: devices that it must have, as those of a sleeper.
    """
    assert node.facts is not None
    if not node.facts.devices:
        return Fit(devices=(), free_bytes=0)
    need = needed_share(profile, only)
    if only:
        has_room = node.broken.isdisjoint(only) and all(free.get(i, 0) >= need for i in only)
        return _fit(only, free) if has_room else None
    roomy = [
        device
        for device in node.facts.devices
        if free[device.index] >= need
        and is_able(device, profile)
        and device.index not in node.broken
    ]
    if len(roomy) < profile.min_devices:
        return None
    roomy.sort(key=lambda device: (-free[device.index], device.index))
    chosen = roomy[: profile.min_devices]
    return _fit(tuple(sorted(device.index for device in chosen)), free)


def needed_share(profile: Profile, only: tuple[DeviceIndex, ...] = ()) -> int:
    """Return what the model takes of each of its devices, in bytes; 0 when nobody knows."""
    return (profile.vram_bytes or 0) // len(only) if only else share_bytes(profile)


def _fit(devices: tuple[DeviceIndex, ...], free: Mapping[DeviceIndex, int]) -> Fit:
    return Fit(devices=devices, free_bytes=sum(free[index] for index in devices))


def free_bytes(
    state: FleetState, catalogue: Catalogue, node: NodeState
) -> Mapping[DeviceIndex, int]:
    """Return free memory by device: what the driver says, less what is promised already.

    A replica that still loads, and a load or wake that is on its way, are counted with their
    estimate, because the driver does not show them yet. An unknown estimate counts as nothing.
    What is being freed for a model is kept for it.
    """
    if is_plain(state, node):
        return node.room
    return _free(state, catalogue, node, leaving=False, has_readings=True)


def is_plain(state: FleetState, node: NodeState) -> bool:
    """Whether all that is to be known of a node's memory is in its report."""
    is_promised = any(
        node.name in noted for noted in (state.commands_at, state.swaps_at, state.members_at)
    )
    return not is_promised and not node.tally.unsized


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
    held, gone = dict(node.tally.staying), dict[DeviceIndex, int]()
    _add(gone if leaving else held, node.tally.leaving)
    for replica in node.tally.unsized:
        is_leaving = leaving and replica.status is ReplicaStatus.UNLOADING
        profile = catalogue.profiles.get(replica.id.model)
        _add(gone if is_leaving else held, shares(node, replica, profile))
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
    for model, command in state.commands_at.get(node.name, {}).items():
        known = node.replicas.get(model)
        if known is None or not known.holds_memory:
            size = (command.vram_bytes or 0) // max(1, len(command.devices))
            _add(promised, dict.fromkeys(command.devices, size))
    for member in state.members_at.get(node.name, ()):
        known = node.replicas.get(member.model)
        if known is None or not known.holds_memory:
            size = (member.vram_bytes or 0) // max(1, len(member.devices))
            _add(promised, dict.fromkeys(member.devices, size))
    for swap in state.swaps_at.get(node.name, ()):
        # What its victims hold counts as theirs until it is free.
        theirs: dict[DeviceIndex, int] = {}
        for victim in swap.replicas:
            replica = node.replicas.get(victim.model)
            is_gone = leaving and replica is not None and replica.status is ReplicaStatus.UNLOADING
            if replica is not None and replica.holds_memory and not is_gone:
                _add(theirs, shares(node, replica, catalogue.profiles.get(victim.model)))
        rest = {i: max(0, swap.share_bytes - theirs.get(i, 0)) for i in swap.devices}
        _add(promised, rest)
    return promised


def _add(to: dict[DeviceIndex, int], more: Mapping[DeviceIndex, int]) -> None:
    for index, size in more.items():
        to[index] = to.get(index, 0) + size


def shares(node: NodeState, replica: Replica, profile: Profile | None) -> dict[DeviceIndex, int]:
    """Return what a replica holds of each of its devices, in bytes; 0 when nobody knows."""
    size = node.size_of(replica)
    if size is None and profile is not None:
        size = profile.vram_bytes
    return {index: (size or 0) // len(replica.devices) for index in replica.devices}


def cooling_down(state: FleetState, replica: ReplicaId, now: float) -> bool:
    """Whether the last load of `replica` failed too recently to try again."""
    failure = state.failures.get(replica)
    return failure is not None and now < failure.retry_at
