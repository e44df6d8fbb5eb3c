"""How the fleet snapshot changes: each function returns the next one."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from cortex_core.fleet import breaker as breakers
from cortex_core.fleet.known import Known
from cortex_core.fleet.residents import residents_of
from cortex_core.fleet.state import (
    FleetState,
    LoadCommand,
    LoadFailure,
    NodeHealth,
    NodeState,
    Swap,
)
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.replica import Replica, ReplicaStatus

K = TypeVar("K")
V = TypeVar("V")

MISSES_TO_DOWN = 3
FIRST_COOL_DOWN_S = 5.0
MAX_COOL_DOWN_S = 300.0

_RECKONED = {"homes": "nodes", "spread": "nodes", "commands_at": "commands", "swaps_at": "swaps"}
"""What a state keeps beside itself, by what it is reckoned from."""


def from_endpoints(endpoints: Mapping[NodeName, str]) -> FleetState:
    """Return a fleet of nodes that have not been seen yet."""
    return FleetState(
        nodes={
            name: NodeState(name=name, endpoint=url.rstrip("/")) for name, url in endpoints.items()
        }
    )


def with_node(state: FleetState, node: NodeState) -> FleetState:
    """Return the fleet with one more node, or with another one of the same name."""
    return _with_node(without_node(state, node.name), node)


def without_node(state: FleetState, name: NodeName) -> FleetState:
    """Return the fleet without a node and all that was known of it; it need not have been there."""
    if name not in state.nodes:
        return state
    return _next(
        state,
        nodes=_without(state.nodes, name),
        failures=_without_node(state.failures, name),
        commands=_without_node(state.commands, name),
        breakers=_without_node(state.breakers, name),
        unloads=frozenset(replica for replica in state.unloads if replica.node != name),
        swaps={model: swap for model, swap in state.swaps.items() if swap.node != name},
        recycling=None if state.recycling == name else state.recycling,
    )


def revised(state: FleetState) -> FleetState:
    """Return the same fleet as news: what is decided from it has changed."""
    return _next(state)


def with_facts(state: FleetState, name: NodeName, facts: NodeFacts) -> FleetState:
    """Return the fleet with what discovery found on a node."""
    return _with_node(state, msgspec.structs.replace(state.nodes[name], facts=facts))


def with_report(state: FleetState, name: NodeName, report: NodeReport, now: float) -> FleetState:
    """Return the fleet after a node's full report, which also proves that it is up.

    A boot id that differs from that of the facts voids them, so that discovery is asked again,
    and forgives the loads and requests that failed in the life before.
    """
    node = state.nodes[name]
    facts = node.facts
    if facts is not None and report.boot_id is not None and facts.boot_id != report.boot_id:
        facts = None
        node = msgspec.structs.replace(node, sleepless=frozenset(), recycle_after=None)
        state = _changed(
            state,
            breakers=_without_node(state.breakers, name),
            failures=_without_node(state.failures, name),
        )
    replicas = {
        replica.id.model: replica
        for replica in report.replicas
        if replica.status is not ReplicaStatus.UNLOADED
    }
    node = _reported(msgspec.structs.replace(node, facts=facts), report, replicas, now)
    return _forgiven(_with_node(state, node), name, replicas.values())


def _reported(
    node: NodeState, report: NodeReport, replicas: Mapping[ModelId, Replica], now: float
) -> NodeState:
    """Return a node after its report, which has these replicas."""
    has_freed = any(
        before.holds_memory
        and before.base is None
        and not (model in replicas and replicas[model].holds_memory)
        for model, before in node.replicas.items()
    )
    return msgspec.structs.replace(
        node,
        health=NodeHealth.UP,
        misses=0,
        replicas=replicas,
        residents=residents_of(node, replicas, now),
        load_times=_load_times(node, replicas.values()),
        freed_at=now if has_freed else node.freed_at,
        readings={reading.index: reading for reading in report.devices},
        activation=report.activation,
        is_draining=report.is_draining,
        is_cordoned=report.is_cordoned,
        is_recycling=report.is_recycling,
        sleep_budget_bytes=report.sleep_budget_bytes,
        sleep_used_bytes=report.sleep_used_bytes,
        cycles=report.cycles,
        measured=report.measured,
        reported_at=now,
        last_error=None,
    )


def with_known(state: FleetState, model: ModelId, known: Known) -> FleetState:
    """Return the fleet after a neuron said what a model could do, were it loaded."""
    if state.known.get(model) == known:
        return state
    return _next(state, known={**state.known, model: known})


def with_doubt(state: FleetState, replica: ReplicaId) -> FleetState:
    """Return the fleet after a neuron refused a request that the snapshot had promised it serves.

    The replica's status is unknown until the next report, so nothing is routed there and a load
    may be planned.
    """
    node = state.nodes.get(replica.node)
    known = None if node is None else node.replicas.get(replica.model)
    if node is None or known is None:
        return state
    doubted = msgspec.structs.replace(known, status=ReplicaStatus.UNKNOWN)
    replicas = {**node.replicas, replica.model: doubted}
    return _with_node(state, msgspec.structs.replace(node, replicas=replicas))


def with_miss(state: FleetState, name: NodeName, error: str) -> FleetState:
    """Return the fleet after a contact with a node failed.

    One miss makes it suspect, three down. What it holds is kept as last known: a lost poll is
    no evidence that a model is gone.
    """
    node = state.nodes[name]
    misses = node.misses + 1
    if misses >= MISSES_TO_DOWN:
        health = NodeHealth.DOWN
    elif node.health is NodeHealth.UP:
        health = NodeHealth.SUSPECT
    else:
        health = node.health
    return _with_node(
        state, msgspec.structs.replace(node, health=health, misses=misses, last_error=error)
    )


def with_command(state: FleetState, replica: ReplicaId, command: LoadCommand) -> FleetState:
    """Return the fleet with a load on its way.

    What is loaded is not on its way out any more: an unload that was on its way met nothing, or a
    node that could not be reached.
    """
    commands = {**state.commands, replica: command}
    return _next(state, commands=commands, unloads=state.unloads - {replica})


def without_command(state: FleetState, replica: ReplicaId) -> FleetState:
    """Return the fleet after the answer to a load came, or will not come."""
    return _next(state, commands=_without(state.commands, replica))


def with_unloads(state: FleetState, replicas: Iterable[ReplicaId]) -> FleetState:
    """Return the fleet with unloads on their way."""
    return _next(state, unloads=state.unloads | frozenset(replicas))


def without_unloads(state: FleetState, replicas: Iterable[ReplicaId]) -> FleetState:
    """Return the fleet after the answers to unloads came, or will not come."""
    return _next(state, unloads=state.unloads - frozenset(replicas))


def with_swap(state: FleetState, model: ModelId, swap: Swap) -> FleetState:
    """Return the fleet with room being made for `model`."""
    state = with_unloads(state, swap.replicas)
    return _next(state, swaps={**state.swaps, model: swap})


def without_swap(state: FleetState, model: ModelId) -> FleetState:
    """Return the fleet after room was made for `model`, or will not be."""
    swap = state.swaps.get(model)
    if swap is None:
        return state
    state = without_unloads(state, swap.replicas)
    return _next(state, swaps=_without(state.swaps, model))


def with_use(state: FleetState, replica: ReplicaId, now: float) -> FleetState:
    """Return the fleet with a replica used just now, as whoever sent it a request knows.

    The same object when no report has shown the replica.
    """
    known = state.resident(replica)
    if known is None or known.used >= now:
        return state
    node = state.nodes[replica.node]
    used = {**node.residents, replica.model: msgspec.structs.replace(known, used=now)}
    return _with_node(state, msgspec.structs.replace(node, residents=used))


def with_sleepless(state: FleetState, replica: ReplicaId) -> FleetState:
    """Return the fleet after a neuron said that it cannot put a model to sleep."""
    node = state.nodes.get(replica.node)
    if node is None:
        return state
    sleepless = node.sleepless | {replica.model}
    return _with_node(state, msgspec.structs.replace(node, sleepless=sleepless))


def with_recycling(state: FleetState, name: NodeName) -> FleetState:
    """Return the fleet with a node told to recycle its engines."""
    return _next(state, recycling=name)


def without_recycling(
    state: FleetState, name: NodeName, retry_at: float | None = None
) -> FleetState:
    """Return the fleet after a node recycled its engines, or will not until `retry_at`."""
    if state.recycling != name:
        return state
    node, state = state.nodes[name], _next(state, recycling=None)
    return _with_node(state, msgspec.structs.replace(node, recycle_after=retry_at))


def with_load_failure(
    state: FleetState,
    replica: ReplicaId,
    reason: str,
    now: float,
    *,
    is_for_room: bool = False,
    needed_bytes: int = 0,
) -> FleetState:
    """Return the fleet after a load failed; each failure in a row doubles the cool-down."""
    if replica.node not in state.nodes:
        return state
    before = state.failures.get(replica)
    failures = 1 if before is None else before.failures + 1
    # The exponent is bounded so that a long row of failures cannot overflow a float.
    cool_down_s = min(FIRST_COOL_DOWN_S * 2 ** min(failures - 1, 16), MAX_COOL_DOWN_S)
    failure = LoadFailure(
        reason=reason,
        failures=failures,
        retry_at=now + cool_down_s,
        is_for_room=is_for_room,
        needed_bytes=needed_bytes or (0 if before is None else before.needed_bytes),
    )
    return _next(state, failures={**state.failures, replica: failure})


def without_failures(state: FleetState, model: ModelId) -> FleetState:
    """Return the fleet with the failed loads of `model` forgiven, so that it is tried again."""
    if not any(replica.model == model for replica in state.failures):
        return state
    kept = {replica: one for replica, one in state.failures.items() if replica.model != model}
    return _next(state, failures=kept)


def with_request_failure(state: FleetState, replica: ReplicaId, now: float) -> FleetState:
    """Return the fleet after a request failed at a replica for the replica's own fault."""
    if replica.node not in state.nodes:
        return state  # taken out of the fleet while the request ran
    breaker = breakers.with_failure(state.breakers.get(replica), now)
    return _next(state, breakers={**state.breakers, replica: breaker})


def with_request_success(state: FleetState, replica: ReplicaId) -> FleetState:
    """Return the fleet after a request went well; the same object when nothing changes."""
    if replica not in state.breakers:
        return state
    return _next(state, breakers=_without(state.breakers, replica))


def _load_times(node: NodeState, replicas: Iterable[Replica]) -> Mapping[ModelId, float]:
    """Return how long loads on the node took, after its report; as good as never anything new."""
    told = {r.id.model: r.load_s for r in replicas if r.load_s is not None}
    if all(node.load_times.get(model) == load_s for model, load_s in told.items()):
        return node.load_times
    return {**node.load_times, **told}


def _forgiven(state: FleetState, name: NodeName, replicas: Iterable[Replica]) -> FleetState:
    """Forget the load failures of replicas that are loaded, however they came to be."""
    if not any(target.node == name for target in state.failures):
        return state
    loaded = {r.id for r in replicas if r.status is ReplicaStatus.LOADED}
    kept = {key: value for key, value in state.failures.items() if key not in loaded}
    return _changed(state, failures=kept)


def _with_node(state: FleetState, node: NodeState) -> FleetState:
    before = state.nodes.get(node.name)
    after = _next(state, nodes={**state.nodes, node.name: node})
    homes = state.__dict__.get("homes")
    if homes is not None and before is not None:
        moved = before.replicas.keys() ^ node.replicas.keys()
        after.__dict__["homes"] = _moved(homes, after, moved) if moved else homes
        if not moved and "spread" in state.__dict__:
            after.__dict__["spread"] = state.spread
    return after


def _moved(
    homes: Mapping[ModelId, tuple[NodeName, ...]], state: FleetState, models: Iterable[ModelId]
) -> dict[ModelId, tuple[NodeName, ...]]:
    """Return the homes after these models came to a node or left it."""
    after = dict(homes)
    for model in models:
        found = tuple(node.name for node in state.nodes.values() if model in node.replicas)
        if found:
            after[model] = found
        else:
            after.pop(model, None)
    return after


def _next(state: FleetState, **changes: object) -> FleetState:
    return _changed(state, revision=state.revision + 1, **changes)


def _changed(state: FleetState, **changes: object) -> FleetState:
    """Return the changed state, with what was reckoned from what has not changed."""
    after = msgspec.structs.replace(state, **changes)
    for name, source in _RECKONED.items():
        if name in state.__dict__ and source not in changes:
            after.__dict__[name] = state.__dict__[name]
    return after


def _without_node(mapping: Mapping[ReplicaId, V], name: NodeName) -> dict[ReplicaId, V]:
    return {key: value for key, value in mapping.items() if key.node != name}


def _without(mapping: Mapping[K, V], key: K) -> dict[K, V]:
    return {k: v for k, v in mapping.items() if k != key}
