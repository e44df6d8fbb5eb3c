"""Where a model would go now, and what keeps each node from taking it."""

import math
from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.feasibility import infeasible_reason, share_bytes
from cortex_core.fleet.state import FleetState, LoadCommand, NodeState, Swap
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.evict import Eviction, Later, find_eviction
from cortex_core.placement.fit import Fit, cooling_down, find_fit, free_bytes
from cortex_core.placement.policy import DEFAULT_POLICY, NO_RATES, EvictionPolicy, Rates
from cortex_core.placement.steps import Evict, Hold, Load, NodeVerdict
from cortex_core.replica import ReplicaStatus
from cortex_core.units import mib_from_bytes
from cortex_core.wire.neuron import LoadRequest

UNDER_WAY = frozenset({ReplicaStatus.LOADING, ReplicaStatus.RELOADING, ReplicaStatus.RECOVERING})
"""Statuses that become `loaded` without anybody asking again."""


def make_room(
    state: FleetState,
    catalogue: Catalogue,
    model: ModelId,
    now: float,
    *,
    avoid: frozenset[ReplicaId] = frozenset(),
    barred: frozenset[NodeName] = frozenset(),
    policy: EvictionPolicy = DEFAULT_POLICY,
    rates: Rates = NO_RATES,
) -> Load | Evict | Hold:
    """Choose a node for `model`: one where it fits, else one where the cheapest give way.

    A `Hold` with a `retry_at` says that somebody gives way when it has been there for longer.
    Nothing is put onto a node that is `barred`.
    """
    step = place(state, catalogue, model, now, avoid=avoid, barred=barred)
    if isinstance(step, Load):
        return step
    later = [verdict.retry_at for verdict in step.verdicts if verdict.retry_at is not None]
    if not any(verdict.lacks_room for verdict in step.verdicts):
        return msgspec.structs.replace(step, retry_at=min(later, default=None))
    profile = catalogue.profiles[model]
    crowded = [state.nodes[verdict.node] for verdict in step.verdicts if verdict.lacks_room]
    found = {
        node.name: find_eviction(
            state, catalogue, profile, node, policy=policy, rates=rates, now=now
        )
        for node in crowded
    }
    return _best(step, profile, found, later)


def _best(
    hold: Hold,
    profile: Profile,
    found: Mapping[NodeName, Eviction | Later | None],
    later: list[float],
) -> Evict | Hold:
    """Return the cheapest eviction, unless enough has given way somewhere already."""
    waits = {name: wait for name, wait in found.items() if isinstance(wait, Later)}
    # A wait without an end, as for a load that hangs, must not keep a node from everybody.
    awaited = frozenset(name for name, wait in waits.items() if math.isfinite(wait.at))
    settling = [wait.at for wait in waits.values() if wait.is_settling]
    if settling:
        return msgspec.structs.replace(hold, retry_at=min(settling), awaited=awaited)
    evictions = {name: one for name, one in found.items() if isinstance(one, Eviction)}
    if not evictions:
        retry_at = min([*later, *(wait.at for wait in waits.values())], default=None)
        return msgspec.structs.replace(hold, retry_at=retry_at, awaited=awaited)
    name = min(evictions, key=lambda name: (evictions[name].price, name))
    swap = Swap(
        node=name,
        devices=evictions[name].devices,
        share_bytes=share_bytes(profile),
        victims=evictions[name].victims,
    )
    return Evict(model=hold.model, swap=swap)


def is_coming(state: FleetState, model: ModelId) -> bool:
    """Whether a node that takes work serves or loads `model`, or was told to."""
    for node, replica in state.replicas_of(model):
        if node.takes_work and (replica.is_servable or replica.status in UNDER_WAY):
            return True
    return any(
        target.model == model and state.nodes[target.node].takes_work for target in state.commands
    )


def place(
    state: FleetState,
    catalogue: Catalogue,
    model: ModelId,
    now: float,
    *,
    avoid: frozenset[ReplicaId] = frozenset(),
    barred: frozenset[NodeName] = frozenset(),
) -> Load | Hold:
    """Choose a node for `model` that takes work, but for replicas to `avoid` and nodes `barred`.

    Preference: nodes it is pinned on (no others qualify), then the most free memory on the
    devices that it would take, then the node's name.
    """
    profile = catalogue.profiles.get(model)
    if profile is None:
        return Hold(model=model, verdicts=())
    fits: list[tuple[NodeState, Fit]] = []
    verdicts: list[NodeVerdict] = []
    for node in state.nodes.values():
        reason = None
        if ReplicaId(node=node.name, model=model) in avoid:
            reason = "it was tried for this request"
        elif node.name in barred:
            reason = "a request that has waited for longer gets the next room there"
        if reason is not None:
            verdicts.append(NodeVerdict(node=node.name, reason=reason, is_permanent=False))
            continue
        outcome = judge(state, catalogue, profile, node, now)
        if isinstance(outcome, Fit):
            fits.append((node, outcome))
        else:
            verdicts.append(outcome)
    if not fits:
        return Hold(model=model, verdicts=tuple(verdicts))
    node, fit = min(fits, key=lambda pair: (-pair[1].free_bytes, pair[0].name))
    return _load(profile, node, fit, now)


def _load(profile: Profile, node: NodeState, fit: Fit, now: float) -> Load:
    return Load(
        replica=ReplicaId(node=node.name, model=profile.id),
        request=LoadRequest(
            model_id=profile.id,
            harness=profile.harness,
            quant=profile.quant,
            tensor_parallel=profile.min_devices if profile.min_devices > 1 else None,
            devices=fit.devices or None,
            engine=profile.engine,
            vram_mb=profile.vram_mb,
        ),
        command=LoadCommand(devices=fit.devices, vram_bytes=profile.vram_bytes, sent_at=now),
    )


def judge(
    state: FleetState, catalogue: Catalogue, profile: Profile, node: NodeState, now: float
) -> Fit | NodeVerdict:
    """Return where on `node` the model would be loaded now, or what keeps it from that."""

    def no(reason: str, *, permanent: bool = False, lacks_room: bool = False) -> NodeVerdict:
        return NodeVerdict(
            node=node.name, reason=reason, is_permanent=permanent, lacks_room=lacks_room
        )

    reason = infeasible_reason(profile, node)
    if reason is not None:
        is_elsewhere = bool(profile.pinned_on) and node.name not in profile.pinned_on
        return no(reason, permanent=node.facts is not None or is_elsewhere)
    if not node.is_reachable:
        return no(f"the node is {node.health}")
    if node.is_draining:
        return no("the node is draining")
    replica = node.replicas.get(profile.id)
    if replica is not None and replica.status is ReplicaStatus.POISONED:
        return no("its device there is poisoned")
    if replica is not None and replica.status is ReplicaStatus.LOADED:
        return no(f"it is loaded there and takes no requests: {replica.unservable_reason}")
    if replica is not None and replica.status is ReplicaStatus.UNLOADING:
        return no("it is being unloaded there")
    target = ReplicaId(node=node.name, model=profile.id)
    if cooling_down(state, target, now):
        failure = state.failures[target]
        verdict = no(f"the last load failed: {failure.reason}")
        retry_at = failure.retry_at if failure.is_for_room else None
        return msgspec.structs.replace(verdict, retry_at=retry_at)
    free = free_bytes(state, catalogue, node)
    fit = find_fit(profile, node, free)
    if fit is None:
        sizes = ", ".join(str(mib_from_bytes(size)) for size in free.values())
        reason = f"no room now: it takes {profile.vram_mb} MiB, free are {sizes} MiB"
        return no(reason, lacks_room=True)
    return fit
