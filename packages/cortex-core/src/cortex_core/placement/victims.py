"""Who may give way on a node, and in which order."""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.sizes import sized
from cortex_core.fleet.state import NodeState, Way
from cortex_core.ids import DeviceIndex
from cortex_core.placement.case import OLD, Case
from cortex_core.placement.fit import shares
from cortex_core.placement.host import can_sleep, host_bytes, host_free_bytes, sleepers
from cortex_core.placement.policy import Strategy, priority_of
from cortex_core.placement.times import comeback_s
from cortex_core.replica import Replica, ReplicaStatus


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that may give way."""

    replica: Replica
    profile: Profile
    """With the size that it has on this node."""
    shares: Mapping[DeviceIndex, int]
    """What it holds of each device, in bytes."""
    stays_until: float
    """Monotonic seconds until which it is not to be moved."""
    is_spare: bool
    """Its model is served well enough without it."""
    price: tuple[float, ...]
    """Busy or not, what the strategy weighs, and when it was used."""

    @property
    def key(self) -> tuple[object, ...]:
        """Orders candidates: the smallest goes first."""
        return (*self.price, self.replica.id.model)


def candidates(case: Case, wanting: Profile, node: NodeState) -> list[Candidate]:
    """Return who may give way for `wanting`, in the order in which they do."""
    found = []
    host_free = host_free_bytes(case, node)
    for model, replica in node.replicas.items():
        profile = case.catalogue.profiles.get(model)
        if replica.status is not ReplicaStatus.LOADED or replica.id in case.state.unloads:
            continue
        if profile is None or not case.may_give_way(replica, wanting, node):
            continue
        profile = sized(case.state, profile, node)
        held = shares(node, replica, profile)
        if any(held.values()):
            is_kept = can_sleep(node, replica) and sum(held.values()) <= host_free
            loss_s = _loss(case, node, replica, profile, Way.SLEEP_1 if is_kept else Way.UNLOAD)
            found.append(_candidate(case, node, replica, profile, loss_s))
    return sorted(found, key=lambda candidate: candidate.key)


def movable_sleepers(case: Case, wanting: Profile, node: NodeState) -> list[Candidate]:
    """Return the sleepers that may be unloaded, the least valuable first.

    What they weigh for `cost` is what their callers lose when they are unloaded.
    """
    state, found = case.state, []
    for replica in sleepers(node):
        model = replica.id.model
        profile = case.catalogue.profiles.get(model)
        is_noted = replica.id in state.unloads or replica.id in state.commands
        if profile is None or is_noted or model in state.swaps or model in case.wanted:
            continue
        if model == wanting.id or not case.may_give_way(replica, wanting, node):
            continue
        if host_bytes(case, node, replica):
            profile = sized(state, profile, node)
            loss_s = _loss(case, node, replica, profile, Way.UNLOAD)
            loss_s -= _loss(case, node, replica, profile, Way.SLEEP_1)
            found.append(_candidate(case, node, replica, profile, max(0.0, loss_s)))
    return sorted(found, key=lambda sleeper: sleeper.key)


def lost_s(case: Case, node: NodeState, candidate: Candidate, way: Way) -> float:
    """Return the seconds that callers are expected to lose when it gives way in this way."""
    return _loss(case, node, candidate.replica, candidate.profile, way)


def _loss(case: Case, node: NodeState, replica: Replica, profile: Profile, way: Way) -> float:
    if case.is_spare(replica, profile):
        return 0.0
    return case.chance(profile.id) * comeback_s(node, profile, replica, way)


def _candidate(
    case: Case, node: NodeState, replica: Replica, profile: Profile, loss_s: float
) -> Candidate:
    resident = node.residents.get(profile.id) or OLD
    is_spare = case.is_spare(replica, profile)
    match case.policy.strategy:
        case Strategy.LRU:
            weight: tuple[float, ...] = (float(not is_spare),)
        case Strategy.PRIORITY:
            weight = (float(not is_spare), float(priority_of(profile)))
        case _:
            weight = (loss_s,)
    # Nodes have clocks of their own, so that the gateway's comes first.
    age = (resident.used, replica.last_used or 0.0)
    return Candidate(
        replica=replica,
        profile=profile,
        shares=shares(node, replica, profile),
        stays_until=resident.since + case.policy.min_residency_s,
        is_spare=is_spare,
        price=(float(replica.is_busy), *weight, *age),
    )
