"""Who may give way on a node, and in which order."""

import math
from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.sizes import sized, with_size
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
    """What it holds of each device, in bytes; empty for a sleeper."""
    is_spare: bool
    """Its model is served well enough without it."""
    price: tuple[float, ...]
    """Busy or not, what the strategy weighs, and when it was used."""

    @property
    def key(self) -> tuple[object, ...]:
        """Orders candidates: the smallest goes first."""
        return (*self.price, self.replica.id.model)


def candidates(case: Case, wanting: Profile, node: NodeState) -> tuple[list[Candidate], float]:
    """Return who may give way for `wanting` now, in order, and when the next one may.

    The latter is in monotonic seconds, infinite when no passing of time helps.
    """
    found, next_at = [], math.inf
    for model, replica in node.replicas.items():
        profile = case.catalogue.profiles.get(model)
        if profile is None or not _is_ready(case, replica, wanting, node):
            continue
        if case.is_awaited(replica, node):
            continue
        stays_until = _stays_until(case, node, replica)
        if stays_until > case.now:
            next_at = min(next_at, stays_until)
            continue
        profile = sized(case.state, profile, node)
        held = shares(node, replica, profile)
        if any(held.values()):
            # What it holds now is the best that is known of it.
            profile = with_size(profile, sum(held.values()))
            found.append(_candidate(case, node, replica, profile, held))
    return sorted(found, key=lambda candidate: candidate.key), next_at


def adapter_candidates(
    case: Case, wanting: Profile, node: NodeState
) -> tuple[list[Candidate], float]:
    """Return which adapters of the same base may give way for the adapter `wanting`; see above."""
    found, next_at = [], math.inf
    for replica in node.adapters.get(wanting.base or wanting.id, ()):
        profile = case.catalogue.profiles.get(replica.id.model)
        if profile is None or not _is_ready(case, replica, wanting, node):
            continue
        stays_until = _stays_until(case, node, replica)
        if stays_until > case.now:
            next_at = min(next_at, stays_until)
        else:
            found.append(_candidate(case, node, replica, profile, {}))
    return sorted(found, key=lambda candidate: candidate.key), next_at


def _is_ready(case: Case, replica: Replica, wanting: Profile, node: NodeState) -> bool:
    """Whether a replica is loaded and may give way, how long it has been there aside."""
    if replica.status is not ReplicaStatus.LOADED or replica.id in case.state.unloads:
        return False
    return case.may_give_way(replica, wanting, node)


def _stays_until(case: Case, node: NodeState, replica: Replica) -> float:
    """Return until when a replica is left in peace: it, or the latest of its adapters, just came."""
    came = (node.residents.get(one.id.model) or OLD for one in node.with_adapters(replica))
    return max(resident.since for resident in came) + case.policy.min_residency_s


def movable_sleepers(case: Case, wanting: Profile, node: NodeState) -> list[Candidate]:
    """Return the sleepers that may be unloaded for another, the least valuable first."""
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
            found.append(_candidate(case, node, replica, profile, {}))
    return sorted(found, key=lambda sleeper: sleeper.key)


def lost_s(case: Case, node: NodeState, candidate: Candidate, way: Way) -> float:
    """Return the seconds that callers are expected to lose when it gives way in this way."""
    if candidate.is_spare:
        return 0.0
    back_s = comeback_s(node, candidate.profile, candidate.replica, way)
    models = (one.id.model for one in node.with_adapters(candidate.replica))
    return case.chance(*models) * back_s


def _candidate(
    case: Case,
    node: NodeState,
    replica: Replica,
    profile: Profile,
    held: Mapping[DeviceIndex, int],
) -> Candidate:
    # Whoever uses an adapter uses its base.
    going = node.with_adapters(replica)
    candidate = Candidate(
        replica=replica,
        profile=profile,
        shares=held,
        is_spare=all(_is_spare(case, one) for one in going),
        # Nodes have clocks of their own, so that the gateway's comes first.
        price=max(
            ((node.residents.get(one.id.model) or OLD).used, one.last_used or 0.0) for one in going
        ),
    )
    is_busy = any(one.is_busy for one in going)
    price = (float(is_busy), *_weight(case, node, candidate), *candidate.price)
    return msgspec.structs.replace(candidate, price=price)


def _is_spare(case: Case, replica: Replica) -> bool:
    profile = case.catalogue.profiles.get(replica.id.model)
    return profile is not None and case.is_spare(replica, profile)


def _weight(case: Case, node: NodeState, candidate: Candidate) -> tuple[float, ...]:
    """Return what the strategy weighs of a replica."""
    match case.policy.strategy:
        case Strategy.LRU:
            return (float(not candidate.is_spare),)
        case Strategy.PRIORITY:
            return (float(not candidate.is_spare), _priority(case, node, candidate))
        case Strategy.COST:
            return (_likely_loss(case, node, candidate),)


def _priority(case: Case, node: NodeState, candidate: Candidate) -> float:
    """Return the highest residency priority of those that go."""
    profiles = case.catalogue.profiles
    going = (one.id.model for one in node.with_adapters(candidate.replica))
    return max(float(priority_of(profiles[model])) for model in going if model in profiles)


def _likely_loss(case: Case, node: NodeState, candidate: Candidate) -> float:
    """Return what is lost when it goes in the way that looks possible if it goes alone.

    Of a sleeper, that is what its unloading costs beside its sleep.
    """
    replica = candidate.replica
    unload_s = lost_s(case, node, candidate, Way.UNLOAD)
    if replica.status is ReplicaStatus.SLEEPING:
        return max(0.0, unload_s - lost_s(case, node, candidate, Way.SLEEP_1))
    if not can_sleep(node, replica):
        return unload_s
    fits = sum(candidate.shares.values()) <= host_free_bytes(case, node)
    return lost_s(case, node, candidate, Way.SLEEP_1) if fits else unload_s
