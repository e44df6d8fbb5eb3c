"""How those give way who do: asleep, or unloaded."""

from collections.abc import Sequence

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.state import NodeState, Victim, Way
from cortex_core.placement.case import Case
from cortex_core.placement.host import can_sleep, host_bytes, host_free_bytes
from cortex_core.placement.policy import Strategy
from cortex_core.placement.times import comeback_s, has_woken, measured_load_s
from cortex_core.placement.victims import Candidate, lost_s, movable_sleepers


class Parting(msgspec.Struct, frozen=True, kw_only=True):
    """How those go who make room."""

    victims: tuple[Victim, ...]
    """Sleepers that are unloaded so that others can sleep come first."""
    lost_s: float
    """Seconds that callers are expected to lose by it."""


def part(case: Case, wanting: Profile, node: NodeState, chosen: Sequence[Candidate]) -> Parting:
    """Say of each of `chosen` how it gives way for `wanting`.

    It sleeps when it can and the node's host memory has room for it; the most valuable are asked
    first. Sleepers that are worth less are unloaded for its sake.
    """
    host = _Host(case, wanting, node)
    for candidate in reversed(chosen):
        host.take(candidate)
    return Parting(
        victims=tuple(
            Victim(replica=candidate.replica.id, way=way)
            for candidate, way in (*host.gone, *reversed(host.parted))
        ),
        lost_s=host.lost_s,
    )


class _Host:
    """Host memory of a node while it is being given away."""

    def __init__(self, case: Case, wanting: Profile, node: NodeState) -> None:
        self._case = case
        self._node = node
        self._wanting = wanting
        self._free = host_free_bytes(case, node)
        self._sleepers: list[Candidate] | None = None
        self.gone: list[tuple[Candidate, Way]] = []
        """Sleepers that are unloaded."""
        self.parted: list[tuple[Candidate, Way]] = []
        self.lost_s = 0.0

    def take(self, candidate: Candidate) -> None:
        """Choose the way of one victim, and take the memory that it then sleeps in."""
        way = self._way_of(candidate)
        self.parted.append((candidate, way))
        self.lost_s += lost_s(self._case, self._node, candidate, way)

    def _way_of(self, candidate: Candidate) -> Way:
        node = self._node
        if not can_sleep(node, candidate.replica):
            return Way.UNLOAD
        need = sum(candidate.shares.values())
        if need > self._free:
            self._displace(candidate, need)
        if need <= self._free:
            self._free -= need
            return Way.SLEEP_1
        return Way.SLEEP_2 if _is_quicker_kept(node, candidate) else Way.UNLOAD

    def _displace(self, candidate: Candidate, need: int) -> None:
        """Unload sleepers that are worth less, if that makes room enough."""
        case, node = self._case, self._node
        if self._sleepers is None:
            self._sleepers = movable_sleepers(case, self._wanting, node)
        worth_s = lost_s(case, node, candidate, Way.UNLOAD)
        worth_s -= lost_s(case, node, candidate, Way.SLEEP_1)
        free, cost_s, count = self._free, 0.0, 0
        for sleeper in self._sleepers:
            if free >= need:
                break
            cost_s += sleeper.price[1] if case.policy.strategy is Strategy.COST else 0.0
            if not _is_worth_less(case, sleeper, candidate, cost_s, worth_s):
                return
            free += host_bytes(case, node, sleeper.replica)
            count += 1
        if free >= need:
            self._free, self.lost_s = free, self.lost_s + cost_s
            self.gone += [(sleeper, Way.UNLOAD) for sleeper in self._sleepers[:count]]
            self._sleepers = self._sleepers[count:]


def _is_worth_less(
    case: Case, sleeper: Candidate, candidate: Candidate, cost_s: float, worth_s: float
) -> bool:
    """Whether a sleeper, and those before it, may go so that `candidate` sleeps."""
    if case.policy.strategy is Strategy.COST:
        return cost_s < worth_s
    # Being busy says nothing of what a replica is worth asleep.
    return sleeper.price[1:] < candidate.price[1:]


def _is_quicker_kept(node: NodeState, candidate: Candidate) -> bool:
    """Whether a wake from level 2 is known to be quicker than a load."""
    load_s = measured_load_s(node, candidate.profile)
    if not has_woken(node, candidate.profile, candidate.replica):
        return False
    kept_s = comeback_s(node, candidate.profile, candidate.replica, Way.SLEEP_2)
    return load_s is not None and 0.0 < kept_s < load_s
