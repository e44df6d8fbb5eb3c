"""Who gives way on a node so that a model fits there, and when.

A replica may give way when the catalogue has its model, so that it can come back, when nobody
has pinned it, when it is of no higher residency priority than the model that wants in, and when
it has been there for a while: the last keeps two models that fight for one device from swapping
with every request. Idle replicas go before busy ones, and a busy one lets its requests end
first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.sizes import sized
from cortex_core.fleet.state import NodeState, Victim, Way
from cortex_core.ids import DeviceIndex
from cortex_core.placement.adapters import find_giving_way
from cortex_core.placement.case import Case
from cortex_core.placement.fit import (
    READING_LAG_S,
    find_fit,
    free_bytes,
    settled_bytes,
    shares,
)
from cortex_core.placement.host import can_sleep
from cortex_core.placement.parting import part
from cortex_core.placement.policy import Strategy, priority_of
from cortex_core.placement.times import load_s, wake_s
from cortex_core.placement.victims import Candidate, candidates, lost_s
from cortex_core.replica import ReplicaStatus


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """What makes room for a model on a node."""

    devices: tuple[DeviceIndex, ...]
    """Which it then takes, in rank order."""
    victims: tuple[Victim, ...]
    lost_s: float
    """Seconds that callers of the victims are expected to lose."""
    price: tuple[float, ...]
    """Compared between nodes: busy victims first, then what the strategy weighs."""


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """Room can be made when somebody has been there for long enough, or has come to be there."""

    at: float
    """Monotonic seconds; infinite when a change must come first."""
    is_settling: bool = False
    """Enough has given way already, and is on its way out."""


def find_eviction(case: Case, profile: Profile, node: NodeState) -> Eviction | Later | None:
    """Return who gives way on `node` for a model that is feasible there and does not fit.

    Args:
        case: the fleet at a moment.
        profile: the model that wants in, with the size that it has there; it may sleep there.
        node: a node whose facts are known.

    Returns:
        `None` when nobody who may give way makes enough room.
    """
    if profile.base is not None:
        return _place_eviction(case, profile, node)
    only = sleeper_devices(profile, node)
    if has_news(case, node):
        settled = settled_bytes(case.state, case.catalogue, node, case.now)
        if find_fit(profile, node, settled, only) is not None:
            lag_ends = math.inf if node.freed_at is None else node.freed_at + READING_LAG_S
            return Later(at=lag_ends if lag_ends > case.now else math.inf, is_settling=True)
    free = free_bytes(case.state, case.catalogue, node)
    ready, next_at = candidates(case, profile, node)
    chosen = _enough(profile, node, free, ready, only)
    if chosen is None:
        future = _in_future(case, profile, node)
        return None if find_fit(profile, node, future, only) is None else Later(at=next_at)
    fit = find_fit(profile, node, _freed(free, chosen), only)
    assert fit is not None
    parting = part(case, profile, node, chosen)
    return Eviction(
        devices=fit.devices,
        victims=parting.victims,
        lost_s=parting.lost_s,
        price=_price(case, profile, node, chosen, parting.lost_s),
    )


def _place_eviction(case: Case, adapter: Profile, node: NodeState) -> Eviction | Later | None:
    """Return which adapters give way for one that finds no place with its base on `node`."""
    found = find_giving_way(case, adapter, node)
    if found is None:
        return None
    if isinstance(found, float):
        return Later(at=found)
    if not found:
        return Later(at=math.inf, is_settling=True)
    lost = math.fsum(lost_s(case, node, candidate, Way.UNLOAD) for candidate in found)
    return Eviction(
        devices=found[0].replica.devices,
        victims=tuple(Victim(replica=one.replica.id, way=Way.UNLOAD) for one in found),
        lost_s=lost,
        price=_price(case, adapter, node, found, lost),
    )


def has_news(case: Case, node: NodeState) -> bool:
    """Whether memory is being given back on a node, or its readings may not show yet that it was."""
    is_late = node.freed_at is not None and case.now - node.freed_at < READING_LAG_S
    is_moving = bool(node.tally.leaving or node.tally.unsized)
    return is_late or is_moving or node.name in case.state.swaps_at


def sleeper_devices(profile: Profile, node: NodeState) -> tuple[DeviceIndex, ...]:
    """Return the devices to which a model is bound that sleeps on `node`; none when it does not."""
    replica = node.replicas.get(profile.id)
    is_asleep = replica is not None and replica.status is ReplicaStatus.SLEEPING
    return replica.devices if replica is not None and is_asleep else ()


def least_price(case: Case, profile: Profile, node: NodeState) -> tuple[float, ...]:
    """Return a price that no eviction on `node` is below, without looking for one.

    `Eviction.price` of one node is no more than that of another whose least price is above it.
    """
    arrival = _arrival(case, profile, node)
    is_busy, used = node.coldest
    is_alone = float(not _has_spare(case, node))
    match case.policy.strategy:
        case Strategy.LRU:
            return (float(is_busy), arrival, is_alone, used)
        case Strategy.PRIORITY:
            return (float(is_busy), arrival, is_alone, _least_priority(case, node), used)
        case Strategy.COST:
            return (float(is_busy), arrival + _least_loss(case, node), used)


def _has_spare(case: Case, node: NodeState) -> bool:
    """Whether a replica of the node is of a model that is served well enough without it."""
    profiles = case.catalogue.profiles
    for model in case.state.spread.intersection(node.replicas):
        if model in profiles and case.is_spare(node.replicas[model], profiles[model]):
            return True
    return False


def _least_priority(case: Case, node: NodeState) -> float:
    known = (case.catalogue.profiles.get(model) for model in node.replicas)
    return min((priority_of(one) for one in known if one is not None), default=-math.inf)


def _least_loss(case: Case, node: NodeState) -> float:
    """Return a bound on what is lost with any one replica of the node, from below."""
    least = math.inf
    for model, replica in node.replicas.items():
        if replica.status is ReplicaStatus.LOADED:
            chance = 0.0 if model in case.state.spread else case.chance(model)
            profile = case.catalogue.profiles.get(model)
            if not chance or profile is None:
                return 0.0
            profile = sized(case.state, profile, node)
            back_s = load_s(node, profile) or 0.0
            if can_sleep(node, replica):
                back_s = min(back_s, wake_s(node, profile, replica) or 0.0)
            least = min(least, chance * back_s)
    return least if math.isfinite(least) else 0.0


def _in_future(case: Case, wanting: Profile, node: NodeState) -> dict[DeviceIndex, int]:
    """Return what could be free by device, if everybody gave way who may, whatever they do now."""
    assert node.facts is not None
    lasting: dict[DeviceIndex, int] = {}
    passing: dict[DeviceIndex, int] = {}
    for model, replica in node.replicas.items():
        if not replica.holds_memory:
            continue
        held = passing if case.may_give_way(replica, wanting, node) else lasting
        for index, size in shares(node, replica, case.catalogue.profiles.get(model)).items():
            held[index] = held.get(index, 0) + size
    is_late = node.freed_at is not None and case.now - node.freed_at < READING_LAG_S
    future = {}
    for device in node.facts.devices:
        left = device.vram_total_bytes - lasting.get(device.index, 0)
        reading = node.readings.get(device.index)
        if reading is not None and reading.vram_free_bytes is not None and not is_late:
            # What a stranger's process holds is nobody's to give.
            left = min(left, reading.vram_free_bytes + passing.get(device.index, 0))
        future[device.index] = max(0, left)
    return future


def _enough(
    profile: Profile,
    node: NodeState,
    free: Mapping[DeviceIndex, int],
    victims: Sequence[Candidate],
    only: tuple[DeviceIndex, ...],
) -> list[Candidate] | None:
    """Return the first victims that make room, without those who turn out not to be needed."""
    chosen: list[Candidate] = []
    for victim in victims:
        chosen.append(victim)
        if find_fit(profile, node, _freed(free, chosen), only) is not None:
            break
    else:
        return None
    for victim in reversed(chosen[:-1]):
        without = [other for other in chosen if other is not victim]
        if find_fit(profile, node, _freed(free, without), only) is not None:
            chosen = without
    return chosen


def _freed(free: Mapping[DeviceIndex, int], victims: Iterable[Candidate]) -> dict[DeviceIndex, int]:
    after = dict(free)
    for victim in victims:
        for index, size in victim.shares.items():
            if index in after:
                after[index] += size
    return after


def _price(
    case: Case, profile: Profile, node: NodeState, chosen: Sequence[Candidate], lost_s: float
) -> tuple[float, ...]:
    """Return what an eviction weighs: seconds add up, ages and priorities do not."""
    busy, *rest = max(candidate.price for candidate in chosen)
    arrival = _arrival(case, profile, node)
    if case.policy.strategy is not Strategy.COST:
        return (busy, arrival, *rest)
    count = sum(candidate.price[0] for candidate in chosen)
    return (count, arrival + lost_s, *rest[1:])


def _arrival(case: Case, profile: Profile, node: NodeState) -> float:
    """Return what the coming of the model weighs; a wake is cheaper than a load."""
    replica = node.replicas.get(profile.id)
    is_wake = replica is not None and replica.status is ReplicaStatus.SLEEPING
    if case.policy.strategy is not Strategy.COST:
        return float(not is_wake)
    if replica is not None and is_wake:
        return wake_s(node, profile, replica, replica.sleep_level or 1) or 0.0
    return load_s(node, profile) or 0.0
