"""How much device memory a model takes on a node, by the best that anybody knows.

What loads on that very node came to is worth most, then what the catalogue says, then what
other nodes have seen.
"""

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.ids import ReplicaId
from cortex_core.units import MIB


def estimated(state: FleetState, profile: Profile) -> Profile:
    """Return the profile with a size also where the catalogue has none, if any node knows one."""
    if profile.vram_mb is not None:
        return profile
    told = [
        node.measured[profile.id].vram_bytes or 0
        for node in state.nodes.values()
        if profile.id in node.measured
    ]
    told += [
        failure.needed_bytes
        for target, failure in state.failures.items()
        if target.model == profile.id
    ]
    largest = max(told, default=0)
    # What nodes tell is their own part.
    return with_size(profile, largest * max(1, len(profile.nodes))) if largest else profile


def sized(state: FleetState, profile: Profile, node: NodeState) -> Profile:
    """Return the profile with the size that the model has on `node`; the same when none is known.

    Of a model that several nodes hold together, that is the part of one node, so it is to be
    asked for once.

    Args:
        state: the fleet snapshot.
        profile: as `estimated` gives it.
        node: where it would be loaded.
    """
    nodes = len(profile.nodes)
    if nodes:
        profile = msgspec.structs.replace(
            profile,
            vram_mb=None if profile.vram_mb is None else -(-profile.vram_mb // nodes),
            min_devices=profile.min_devices // nodes,
        )
    return resized(state, profile, node)


def resized(state: FleetState, profile: Profile, node: NodeState) -> Profile:
    """Return the profile of one node's part with the size that it has on `node`."""
    measured = node.measured.get(profile.id)
    size = profile.vram_bytes
    if measured is not None and measured.vram_bytes is not None:
        size = measured.vram_bytes
    if state.failures:
        # A neuron that had no room has said what it wanted, and would say so again.
        failure = state.failures.get(ReplicaId(node=node.name, model=profile.id))
        if failure is not None and failure.needed_bytes:
            size = max(size or 0, failure.needed_bytes)
    return profile if size == profile.vram_bytes or size is None else with_size(profile, size)


def with_size(profile: Profile, size: int) -> Profile:
    """Return the profile with a size in bytes, rounded up to whole MiB."""
    return msgspec.structs.replace(profile, vram_mb=-(-size // MIB))
