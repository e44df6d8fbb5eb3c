"""What decisions about places are taken from, as one value."""

import math

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.state import FleetState, NodeState, Resident
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import (
    DEFAULT_POLICY,
    HORIZON_S,
    NO_RATES,
    EvictionPolicy,
    Rates,
    priority_of,
)
from cortex_core.replica import Replica, ReplicaStatus

UNDER_WAY = frozenset({ReplicaStatus.LOADING, ReplicaStatus.RELOADING, ReplicaStatus.RECOVERING})
"""Statuses that become `loaded` without anybody asking again."""


OLD = Resident(since=-math.inf, used=-math.inf)
"""A replica that this gateway has not seen come."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at a moment, and how it is to be looked at."""

    state: FleetState
    catalogue: Catalogue
    now: float
    """Monotonic seconds."""
    policy: EvictionPolicy = DEFAULT_POLICY
    rates: Rates = NO_RATES
    wanted: frozenset[ModelId] = frozenset()
    """Models that callers wait for."""

    def chance(self, *models: ModelId) -> float:
        """Return how likely one of the models is asked for within `HORIZON_S`, in [0, 1]."""
        if not self.wanted.isdisjoint(models):
            return 1.0
        rate = math.fsum(self.rates.get(model, 0.0) for model in models)
        return 1.0 - math.exp(-rate * HORIZON_S)

    def copies(self, model: ModelId) -> frozenset[NodeName]:
        """Return the nodes on which a copy serves and is to stay, or is under way."""
        state = self.state
        if model not in state.homes and not state.commands:
            return frozenset()
        found = {
            node.name
            for node, replica in state.replicas_of(model)
            if node.takes_work
            and (replica.is_servable or replica.status in UNDER_WAY)
            and replica.id not in state.unloads
        }
        for target in state.commands:
            if target.model == model and state.nodes[target.node].takes_work:
                found.add(target.node)
        return frozenset(found)

    def is_spare(self, replica: Replica, profile: Profile) -> bool:
        """Whether the model is served well enough without this copy."""
        if len(self.state.homes.get(profile.id, ())) < 2:
            return False
        others = self.copies(profile.id) - {replica.id.node}
        return len(others) >= max(1, profile.replicas.min)

    def is_kept(self, replica: Replica, profile: Profile) -> bool:
        """Whether the copy is one of those that are kept loaded whether or not anybody asks."""
        if not profile.replicas.min:
            return False
        return len(self.copies(profile.id) - {replica.id.node}) < profile.replicas.min

    def is_awaited(self, replica: Replica, node: NodeState) -> bool:
        """Whether an adapter is on its way to the engine of a replica, so that it has to stay."""
        model, profiles = replica.id.model, self.catalogue.profiles
        for adapter in node.adapters.get(model, ()):
            if adapter.status in UNDER_WAY:
                return True
        coming = self.state.commands_at.get(node.name, ())
        return any(name in profiles and profiles[name].base == model for name in coming)

    def may_give_way(self, replica: Replica, wanting: Profile, node: NodeState) -> bool:
        """Whether a replica could ever give way for `wanting`, whatever it does now.

        Its adapters go with it, so that they must be free to go as well.
        """
        return all(self._may_go(one, wanting, node) for one in node.with_adapters(replica))

    def _may_go(self, replica: Replica, wanting: Profile, node: NodeState) -> bool:
        profile = self.catalogue.profiles.get(replica.id.model)
        # What is in no catalogue was loaded by somebody else, and could not be brought back.
        if profile is None or replica.is_pinned or node.name in profile.pinned_on:
            return False
        priority, theirs = priority_of(profile), priority_of(wanting)
        # Two models that are both to be kept would push each other out for ever.
        return priority < theirs or (priority == theirs and not self.is_kept(replica, profile))
