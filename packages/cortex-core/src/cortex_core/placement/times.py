"""How long a load or a wake takes on a node, by what the last ones took."""

from cortex_core.catalogue import Profile
from cortex_core.fleet.state import NodeState, Way
from cortex_core.placement.policy import LOAD_BYTES_PER_S, WAKE_BYTES_PER_S
from cortex_core.replica import Replica


def measured_load_s(node: NodeState, profile: Profile) -> float | None:
    """Return the seconds that the latest load of the model on the node took, if any is known."""
    replica = node.replicas.get(profile.id)
    if replica is not None and replica.load_s is not None:
        return replica.load_s
    if profile.id in node.load_times:
        return node.load_times[profile.id]
    measured = node.measured.get(profile.id)
    return None if measured is None else measured.load_s


def load_s(node: NodeState, profile: Profile) -> float | None:
    """Return the seconds that a load takes; by its size where none was measured.

    Args:
        node: where it is loaded.
        profile: with the size that it has there; without one nobody can say.
    """
    measured = measured_load_s(node, profile)
    if measured is not None or profile.vram_bytes is None:
        return measured
    return profile.vram_bytes / LOAD_BYTES_PER_S


def has_woken(node: NodeState, profile: Profile, replica: Replica | None) -> bool:
    """Whether a wake of the model on the node was ever measured."""
    if replica is not None and replica.wake_s is not None:
        return True
    measured = node.measured.get(profile.id)
    return measured is not None and measured.wake_s is not None


def wake_s(
    node: NodeState, profile: Profile, replica: Replica | None, level: int = 1
) -> float | None:
    """Return the seconds that a wake takes; by its size where none was measured.

    One from level 2 reads the weights again, and so takes no less than reading them does.
    """
    told = None if replica is None else replica.wake_s
    measured = node.measured.get(profile.id)
    if told is None and measured is not None:
        told = measured.wake_s
    size = profile.vram_bytes
    if told is None and size is not None:
        told = size / WAKE_BYTES_PER_S
    if level == 1 or told is None:
        return told
    return max(told, (size or 0) / LOAD_BYTES_PER_S)


def comeback_s(node: NodeState, profile: Profile, replica: Replica, way: Way) -> float:
    """Return the seconds until a replica that gave way in this way serves again; 0 is not known."""
    match way:
        case Way.SLEEP_1:
            return wake_s(node, profile, replica) or 0.0
        case Way.SLEEP_2:
            return wake_s(node, profile, replica, level=2) or 0.0
        case Way.UNLOAD:
            return load_s(node, profile) or 0.0
