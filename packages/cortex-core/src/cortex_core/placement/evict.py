"""Who gives way when a model fits nowhere, and when.

A replica may give way when the catalogue has its model, so that it can come back, when nobody
has pinned it to its node, when it is of no higher residency priority than the model that wants
in, and when it has been there for a while: the last keeps two models that fight for one device
from swapping with every request. Idle replicas go before busy ones, and a busy one lets its
requests end first.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.state import FleetState, NodeState, Resident, Victim
from cortex_core.ids import DeviceIndex
from cortex_core.placement.fit import (
    READING_LAG_S,
    find_fit,
    free_bytes,
    settled_bytes,
    shares,
)
from cortex_core.placement.idle import is_busy
from cortex_core.placement.policy import (
    HORIZON_S,
    LOAD_BYTES_PER_S,
    EvictionPolicy,
    Rates,
    Strategy,
    priority_of,
)
from cortex_core.replica import Replica, ReplicaStatus


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """What makes room for a model on a node."""

    devices: tuple[DeviceIndex, ...]
    """Which it then takes, in rank order."""
    victims: tuple[Victim, ...]
    price: tuple[float, ...]
    """Compared between nodes: busy victims first, then what the strategy weighs."""


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """Room can be made when somebody has been there for long enough, or has come to be there."""

    at: float
    """Monotonic seconds; infinite when a change must come first."""
    is_settling: bool = False
    """Enough has given way already, and is on its way out."""


_OLD = Resident(since=-math.inf, used=-math.inf)
"""A replica that this gateway has not seen come."""


class _Victim(msgspec.Struct, frozen=True, kw_only=True):
    replica: Replica
    shares: Mapping[DeviceIndex, int]
    stays_until: float
    price: tuple[float, ...]

    @property
    def key(self) -> tuple[object, ...]:
        return (*self.price, self.replica.id.model)


def find_eviction(
    state: FleetState,
    catalogue: Catalogue,
    profile: Profile,
    node: NodeState,
    *,
    policy: EvictionPolicy,
    rates: Rates,
    now: float,
) -> Eviction | Later | None:
    """Return who gives way on `node` for a model that is feasible there and does not fit.

    Args:
        state: the fleet snapshot.
        catalogue: priorities, pins and sizes.
        profile: the model that wants in.
        node: a node whose facts are known.
        policy: see `EvictionPolicy`.
        rates: how often each model is asked for; for `cost` alone.
        now: monotonic seconds.

    Returns:
        `None` when nobody who may give way makes enough room.
    """
    if find_fit(profile, node, settled_bytes(state, catalogue, node, now)) is not None:
        lag_ends = math.inf if node.freed_at is None else node.freed_at + READING_LAG_S
        return Later(at=lag_ends if lag_ends > now else math.inf, is_settling=True)
    free = free_bytes(state, catalogue, node)
    victims = _victims(state, catalogue, profile, node, policy, rates)
    ready = [victim for victim in victims if victim.stays_until <= now]
    chosen = _enough(profile, node, free, ready)
    if chosen is None:
        if find_fit(profile, node, _in_future(catalogue, profile, node, now)) is None:
            return None
        turns = [victim.stays_until for victim in victims if victim.stays_until > now]
        return Later(at=min(turns, default=math.inf))
    fit = find_fit(profile, node, _freed(free, chosen))
    assert fit is not None
    return Eviction(
        devices=fit.devices,
        victims=tuple(Victim(replica=victim.replica.id) for victim in chosen),
        price=_together(policy.strategy, [victim.price for victim in chosen]),
    )


def _victims(
    state: FleetState,
    catalogue: Catalogue,
    wanting: Profile,
    node: NodeState,
    policy: EvictionPolicy,
    rates: Rates,
) -> list[_Victim]:
    """Return who may give way, in the order in which they do."""
    victims: list[_Victim] = []
    for model, replica in node.replicas.items():
        profile = catalogue.profiles.get(model)
        if replica.status is not ReplicaStatus.LOADED or replica.id in state.unloads:
            continue
        held = shares(replica, profile)
        if profile is None or not _may_give_way(profile, wanting, node) or not any(held.values()):
            continue
        resident = node.residents.get(model) or _OLD
        weigh = _WEIGHTS[policy.strategy]
        # Nodes have clocks of their own, so that the gateway's comes first.
        age = (resident.used, replica.last_used or 0.0)
        weight = weigh(replica, profile, held, rates.get(model, 0.0))
        price = (float(is_busy(replica)), *weight, *age)
        victims.append(
            _Victim(
                replica=replica,
                shares=held,
                stays_until=resident.since + policy.min_residency_s,
                price=price,
            )
        )
    return sorted(victims, key=lambda victim: victim.key)


def _may_give_way(profile: Profile | None, wanting: Profile, node: NodeState) -> bool:
    # What is in no catalogue was loaded by somebody else, and could not be brought back.
    if profile is None or node.name in profile.pinned_on:
        return False
    return priority_of(profile) <= priority_of(wanting)


def _in_future(
    catalogue: Catalogue, wanting: Profile, node: NodeState, now: float
) -> dict[DeviceIndex, int]:
    """Return what could be free by device, if everybody gave way who may, whatever they do now."""
    assert node.facts is not None
    lasting: dict[DeviceIndex, int] = {}
    passing: dict[DeviceIndex, int] = {}
    for model, replica in node.replicas.items():
        profile = catalogue.profiles.get(model)
        held = passing if _may_give_way(profile, wanting, node) else lasting
        for index, size in (shares(replica, profile) if replica.holds_memory else {}).items():
            held[index] = held.get(index, 0) + size
    is_late = node.freed_at is not None and now - node.freed_at < READING_LAG_S
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
    victims: Sequence[_Victim],
) -> list[_Victim] | None:
    """Return the first victims that make room, without those who turn out not to be needed."""
    chosen: list[_Victim] = []
    for victim in victims:
        chosen.append(victim)
        if find_fit(profile, node, _freed(free, chosen)) is not None:
            break
    else:
        return None
    for victim in reversed(chosen[:-1]):
        without = [other for other in chosen if other is not victim]
        if find_fit(profile, node, _freed(free, without)) is not None:
            chosen = without
    return chosen


def _freed(free: Mapping[DeviceIndex, int], victims: Iterable[_Victim]) -> dict[DeviceIndex, int]:
    after = dict(free)
    for victim in victims:
        for index, size in victim.shares.items():
            if index in after:
                after[index] += size
    return after


def _together(strategy: Strategy, prices: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return what several victims weigh: seconds add up, ages and priorities do not."""
    if strategy is Strategy.COST:
        return tuple(sum(column) for column in zip(*prices, strict=True))
    return max(prices)


def _age(
    replica: Replica, profile: Profile, held: Mapping[DeviceIndex, int], rate: float
) -> tuple[float, ...]:
    return ()


def _rank(
    replica: Replica, profile: Profile, held: Mapping[DeviceIndex, int], rate: float
) -> tuple[float, ...]:
    return (float(priority_of(profile)),)


def _seconds(
    replica: Replica, profile: Profile, held: Mapping[DeviceIndex, int], rate: float
) -> tuple[float, ...]:
    load_s = replica.load_s
    if load_s is None:
        load_s = sum(held.values()) / LOAD_BYTES_PER_S
    return (load_s * (1.0 - math.exp(-rate * HORIZON_S)),)


_Weigh = Callable[[Replica, Profile, Mapping[DeviceIndex, int], float], tuple[float, ...]]

_WEIGHTS: Mapping[Strategy, _Weigh] = {
    Strategy.LRU: _age,
    Strategy.PRIORITY: _rank,
    Strategy.COST: _seconds,
}
