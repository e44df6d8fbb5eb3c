"""Where a model would go now, and what keeps each node from taking it."""

import math

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.fleet.sizes import estimated, resized, sized
from cortex_core.fleet.state import FleetState, LoadCommand, Member, NodeState, Swap
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.evict import (
    Eviction,
    Later,
    find_eviction,
    has_news,
    least_price,
    sleeper_devices,
)
from cortex_core.placement.fit import Fit, needed_share
from cortex_core.placement.obstacle import Obstacle, glance, peer_fits, verdict_of
from cortex_core.placement.policy import priority_of
from cortex_core.placement.steps import Evict, Hold, Load, NodeVerdict, Wake
from cortex_core.placement.times import wake_s
from cortex_core.replica import ReplicaStatus
from cortex_core.wire.neuron import LoadRequest, PeerRequest


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model shall not go, or shall."""

    avoid: frozenset[ReplicaId] = frozenset()
    """Replicas that were tried already."""
    barred: frozenset[NodeName] = frozenset()
    """Nodes of which the next room is somebody else's."""
    only: NodeName | None = None
    """The one node of the fleet that is meant."""


ANYWHERE = Limits()

_NO_CHANCE = (Obstacle.CORDONED, Obstacle.INFEASIBLE, Obstacle.POISONED)
"""What keeps an adapter from a node for as long as nobody does anything about it."""

ENOUGH_NODES = 64
"""Of so many nodes, those on which the victims look cheapest, an eviction is the cheapest; what
the others have is not looked at once one is found."""


def find_room(case: Case, model: ModelId, limits: Limits = ANYWHERE) -> Load | Wake | Evict | Hold:
    """Choose a node for `model`.

    Preference: one where it sleeps and fits (the quickest wake), one where it fits (the most
    free memory on the devices that it would take), one where the cheapest give way, of which
    those come first where it only needs to be woken. The node's name decides between equals.

    For an adapter it is a node with its base, and where there is none, the step is its base's.

    A `Hold` with a `retry_at` says that somebody gives way when it has been there for longer, or
    that a base is on its way.
    """
    profile = case.catalogue.profiles.get(model)
    if profile is None:
        return Hold(model=model, verdicts=())
    survey = _Survey(case, profile, limits)
    found = survey.fitting() or survey.evicting()
    if found is not None:
        return found
    if profile.base is not None and survey.needs_base():
        return _bring_base(case, profile, limits, survey)
    return survey.holding()


def _bring_base(
    case: Case, adapter: Profile, limits: Limits, survey: "_Survey"
) -> Load | Wake | Evict | Hold:
    """Return what brings up the base of an adapter, as urgently as the more urgent of the two."""
    base = case.catalogue.host(adapter)
    urgency = max(priority_of(base), priority_of(adapter))
    tried = frozenset(ReplicaId(node=one.node, model=base.id) for one in limits.avoid)
    theirs = _Survey(
        case,
        msgspec.structs.replace(base, residency_priority=urgency),
        msgspec.structs.replace(limits, avoid=tried),
    )
    found = theirs.fitting() or theirs.evicting()
    return found or _without_base(adapter, survey.holding(), theirs.holding())


def _without_base(adapter: Profile, own: Hold, base: Hold) -> Hold:
    """Return why there is nothing to do for an adapter, where it is by its base's reasons."""
    reasons = {verdict.node: verdict for verdict in base.verdicts}
    verdicts = []
    for verdict in own.verdicts:
        theirs = reasons.get(verdict.node)
        if theirs is not None and verdict.is_for_base:
            reason = f"its base {adapter.base}: {theirs.reason}"
            verdict = msgspec.structs.replace(theirs, reason=reason)
        verdicts.append(verdict)
    times = [hold.retry_at for hold in (own, base) if hold.retry_at is not None]
    return msgspec.structs.replace(
        own,
        verdicts=tuple(verdicts),
        retry_at=min(times, default=None),
        awaited=own.awaited | base.awaited,
    )


def judge(case: Case, profile: Profile, node: NodeState) -> Fit | NodeVerdict:
    """Return where on `node` the model would go now, or what keeps it from that.

    Args:
        case: the fleet at a moment.
        profile: with the size that it has there, as `sized` gives it.
        node: any node of the fleet.
    """
    seen = glance(case, profile, node)
    return seen if isinstance(seen, Fit) else verdict_of(case, profile, node, seen)


def is_coming(state: FleetState, model: ModelId) -> bool:
    """Whether a node that takes work serves or loads `model`, or was told to."""
    for node, replica in state.replicas_of(model):
        if node.takes_work and (replica.is_servable or replica.status in UNDER_WAY):
            return True
    return any(
        target.model == model and state.nodes[target.node].takes_work for target in state.commands
    )


class _Survey:
    """What every node could do for one model."""

    def __init__(self, case: Case, profile: Profile, limits: Limits) -> None:
        self._case = case
        self._model = profile.id
        self._profile = estimated(case.state, profile)
        self._limits = limits
        self._fits: list[tuple[NodeState, Fit]] = []
        self._obstacles: list[tuple[NodeState, Obstacle]] = []
        self._waits: dict[NodeName, Later] = {}
        nodes = case.state.nodes
        meant = nodes.values() if limits.only is None else [nodes[limits.only]]
        for node in meant:
            seen = self._glance(node)
            if isinstance(seen, Fit):
                self._fits.append((node, seen))
            else:
                self._obstacles.append((node, seen))

    def _here(self, node: NodeState) -> Profile:
        return sized(self._case.state, self._profile, node)

    def _glance(self, node: NodeState) -> Fit | Obstacle:
        limits = self._limits
        if limits.avoid and ReplicaId(node=node.name, model=self._model) in limits.avoid:
            return Obstacle.AVOIDED
        if node.name in limits.barred:
            return Obstacle.BARRED
        return glance(self._case, self._here(node), node)

    def fitting(self) -> Load | Wake | None:
        """Return what can be done at once."""
        asleep = [(node, fit) for node, fit in self._fits if _sleeps(node, self._model)]
        if asleep:
            node, fit = min(asleep, key=lambda pair: (self._wake_s(pair[0]), pair[0].name))
            return Wake(
                replica=ReplicaId(node=node.name, model=self._model),
                command=LoadCommand(
                    devices=fit.devices,
                    vram_bytes=self._here(node).vram_bytes,
                    sent_at=self._case.now,
                    is_wake=True,
                ),
            )
        if not self._fits:
            return None
        node, fit = min(self._fits, key=lambda pair: (-pair[1].free_bytes, pair[0].name))
        return _load(self._case, self._here(node), node, fit)

    def _wake_s(self, node: NodeState) -> float:
        replica = node.replicas[self._model]
        known = wake_s(node, self._here(node), replica, replica.sleep_level or 1)
        return 0.0 if known is None else known

    def evicting(self) -> Evict | None:
        """Return the cheapest eviction, unless enough has given way somewhere already."""
        best: tuple[tuple[float, ...], NodeName, Eviction] | None = None
        for looked, (least, node) in enumerate(self._crowded()):
            if best is not None and (best[0] < least or looked >= ENOUGH_NODES):
                break
            found = find_eviction(self._case, self._here(node), node)
            if isinstance(found, Later):
                self._waits[node.name] = found
                if found.is_settling:
                    return None
            elif found is not None and (best is None or (found.price, node.name) < best[:2]):
                best = (found.price, node.name, found)
        if best is None:
            return None
        _, name, eviction = best
        return self._evict(self._case.state.nodes[name], eviction)

    def needs_base(self) -> bool:
        """Whether its base is to be brought up, after `evicting` has found nothing for an adapter.

        Not while one is on its way, nor beyond the copies that the base may have where the adapter
        has its chance with one of them.
        """
        seen = {node.name: why for node, why in self._obstacles}
        if self._waits or Obstacle.BASE_COMING in seen.values():
            return False
        base = self._case.catalogue.host(self._profile)
        copies = self._case.copies(base.id)
        has_chance = any(seen.get(name) not in _NO_CHANCE for name in copies & seen.keys())
        is_meant = self._limits.only is not None
        return is_meant or not has_chance or len(copies) < base.replicas.max

    def _crowded(self) -> list[tuple[tuple[float, ...], NodeState]]:
        """Return where others have the room, with what an eviction weighs there at least.

        Nodes on which memory is being given back come first: it may be enough.
        """
        case, found = self._case, []
        for node, why in self._obstacles:
            if why is Obstacle.NO_ROOM:
                is_moving = has_news(case, node)
                least = () if is_moving else least_price(case, self._here(node), node)
                found.append((least, node))
        return sorted(found, key=lambda pair: (pair[0], pair[1].name))

    def _evict(self, node: NodeState, eviction: Eviction) -> Evict:
        here = self._here(node)
        swap = Swap(
            node=node.name,
            devices=eviction.devices,
            share_bytes=needed_share(here, sleeper_devices(here, node)),
            victims=eviction.victims,
        )
        return Evict(model=self._model, swap=swap, lost_s=eviction.lost_s)

    def holding(self) -> Hold:
        """Return why nothing is done, after `evicting` has found nothing."""
        verdicts = tuple(
            verdict_of(self._case, self._here(node), node, why) for node, why in self._obstacles
        )
        # A wait without an end, as for a load that hangs, must not keep a node from everybody.
        awaited = {name for name, wait in self._waits.items() if math.isfinite(wait.at)}
        settling = [wait.at for wait in self._waits.values() if wait.is_settling]
        later = [verdict.retry_at for verdict in verdicts if verdict.retry_at is not None]
        later += [wait.at for wait in self._waits.values()]
        return Hold(
            model=self._model,
            verdicts=verdicts,
            retry_at=min(settling or later, default=None),
            only=self._limits.only,
            awaited=frozenset(awaited),
        )


def _sleeps(node: NodeState, model: ModelId) -> bool:
    replica = node.replicas.get(model)
    return replica is not None and replica.status is ReplicaStatus.SLEEPING


def load_request(profile: Profile, devices: tuple[DeviceIndex, ...] = ()) -> LoadRequest:
    """Return what a neuron is asked for; empty `devices` let it choose."""
    stages, is_adapter = profile.pipeline_parallel, profile.base is not None
    return LoadRequest(
        model_id=profile.id,
        harness=profile.harness,
        quant=profile.quant,
        tensor_parallel=profile.min_devices // stages if profile.min_devices > 1 else None,
        pipeline_parallel=stages if stages > 1 else None,
        # An adapter takes both from its base, as whose engine it was loaded.
        devices=None if is_adapter else devices or None,
        vram_mb=None if is_adapter else profile.vram_mb,
        engine=profile.engine,
        base=profile.base,
        adapter=profile.adapter,
        max_in_flight=profile.max_in_flight,
        max_queue=profile.max_queue,
        max_wait_s=profile.max_wait_s,
        max_share=profile.max_share,
        automatic=True,
    )


def _load(case: Case, profile: Profile, node: NodeState, fit: Fit) -> Load:
    """Return the load of a copy whose head, or all of it, goes to `node`."""
    nodes, members = max(1, len(profile.nodes)), _members(case, profile)
    whole = msgspec.structs.replace(
        profile,
        min_devices=profile.min_devices * nodes,
        vram_mb=None if profile.vram_mb is None else profile.vram_mb * nodes,
    )
    peers = tuple(
        PeerRequest(endpoint=case.state.nodes[one.node].endpoint, devices=one.devices or None)
        for one in members
    )
    request = load_request(whole, fit.devices)
    return Load(
        replica=ReplicaId(node=node.name, model=profile.id),
        request=msgspec.structs.replace(request, peers=peers or None),
        command=LoadCommand(
            devices=fit.devices, vram_bytes=profile.vram_bytes, sent_at=case.now, members=members
        ),
    )


def _members(case: Case, profile: Profile) -> tuple[Member, ...]:
    return tuple(
        Member(
            node=name,
            model=profile.id,
            devices=fit.devices,
            vram_bytes=resized(case.state, profile, case.state.nodes[name]).vram_bytes,
        )
        for name, fit in peer_fits(case, profile).items()
        if isinstance(fit, Fit)
    )
