"""Whether a node could ever hold a model: a matter of its devices, not of their free memory."""

from cortex_core.catalogue import Profile
from cortex_core.device import Device
from cortex_core.fleet.state import NodeState
from cortex_core.units import bytes_from_mib, mib_from_bytes


def infeasible_reason(profile: Profile, node: NodeState) -> str | None:
    """Return why `node` could never hold the model, or `None` when it could.

    A node whose facts are not known yet gives a reason that says so.
    """
    if profile.pinned_on and node.name not in profile.pinned_on:
        return f"the model is pinned on {', '.join(profile.pinned_on)}"
    if profile.nodes and node.name != profile.nodes[0]:
        return f"its head is {profile.nodes[0]}"
    return unfit_reason(profile, node)


def unfit_reason(profile: Profile, node: NodeState) -> str | None:
    """Return why `node` could never hold its part of the model, whoever is the head."""
    facts = node.facts
    if facts is None:
        return "nothing is known of the node yet"
    if profile.harness not in facts.harnesses:
        known = ", ".join(facts.harnesses) or "none"
        return f"it has no harness {profile.harness!r} (it has: {known})"
    if not facts.devices:
        return _without_devices(profile, facts.cuda_unavailable_reason)
    able = [device for device in facts.devices if is_able(device, profile)]
    if len(able) < profile.min_devices:
        need = mib_from_bytes(_least_bytes(profile))
        sizes = ", ".join(str(mib_from_bytes(device.vram_total_bytes)) for device in facts.devices)
        return (
            f"it needs {profile.min_devices} device(s) of {need} MiB each;"
            f" the node's have {sizes} MiB"
        )
    return None


def is_feasible(profile: Profile, node: NodeState) -> bool:
    """Whether `infeasible_reason` has none; much quicker."""
    facts = node.facts
    if facts is None or (profile.pinned_on and node.name not in profile.pinned_on):
        return False
    if profile.harness not in facts.harnesses:
        return False
    if profile.nodes and node.name != profile.nodes[0]:
        return False
    if not facts.devices:
        return _without_devices(profile, None) is None
    least, able = _least_bytes(profile), 0
    for device in facts.devices:
        able += device.vram_total_bytes >= least
    return able >= profile.min_devices


def is_able(device: Device, profile: Profile) -> bool:
    """Whether an empty `device` could hold its share of the model."""
    return device.vram_total_bytes >= _least_bytes(profile)


def share_bytes(profile: Profile) -> int:
    """Return what the model takes of each of its devices; 0 when the catalogue does not say."""
    return (profile.vram_bytes or 0) // profile.min_devices


def _least_bytes(profile: Profile) -> int:
    return max(share_bytes(profile), bytes_from_mib(profile.min_device_vram_mb))


def _without_devices(profile: Profile, cuda_reason: str | None) -> str | None:
    # A host without devices runs models in its own memory, which the catalogue does not size.
    if profile.min_devices == 1 and not profile.min_device_vram_mb:
        return None
    why = f" ({cuda_reason})" if cuda_reason else ""
    return f"it has no devices{why}"
