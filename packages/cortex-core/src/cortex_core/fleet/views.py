"""The fleet as callers see it: `/v1/models` and `/health`."""

import datetime
from collections.abc import Iterable

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.feasibility import is_feasible
from cortex_core.fleet.known import Known
from cortex_core.fleet.sizes import estimated, sized
from cortex_core.fleet.state import FleetState, NodeState
from cortex_core.harness import Limit
from cortex_core.ids import ModelId, NodeName
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.units import mib_from_bytes
from cortex_core.wire.openai.models import ModelList, ModelLocation, ModelObject


class NodeCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes are well."""

    healthy: int
    total: int


class FleetHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of the gateway's `GET /health`."""

    status: str
    """`ok` when every node is up, else `degraded`."""
    nodes: NodeCount


def fleet_health(state: FleetState) -> FleetHealth:
    """Return how many nodes are reachable; a fleet without nodes is degraded."""
    total = len(state.nodes)
    healthy = sum(node.is_reachable and not node.is_draining for node in state.nodes.values())
    status = "ok" if total and healthy == total else "degraded"
    return FleetHealth(status=status, nodes=NodeCount(healthy=healthy, total=total))


def model_list(state: FleetState, catalogue: Catalogue, created: int) -> ModelList:
    """Return every model and alias, sorted by id.

    Args:
        state: the fleet snapshot.
        catalogue: profiles and aliases; an alias whose target is nowhere is left out.
        created: epoch seconds to show as creation time; models have none of their own.
    """
    known = _known_models(state, catalogue)
    objects = [model_object(state, catalogue, model, created) for model in known]
    by_id = {entry.id: entry for entry in objects}
    for alias, target in catalogue.aliases.items():
        if target in by_id and alias not in by_id:
            objects.append(
                msgspec.structs.replace(
                    by_id[target], id=alias, display_name=alias, alias_of=target
                )
            )
    objects.sort(key=lambda entry: entry.id)
    return ModelList(
        data=tuple(objects),
        first_id=objects[0].id if objects else None,
        last_id=objects[-1].id if objects else None,
    )


def model_object(
    state: FleetState, catalogue: Catalogue, model: ModelId, created: int
) -> ModelObject:
    """Return one model as the list shows it."""
    profile = catalogue.profiles.get(model)
    host = None if profile is None else catalogue.host(profile)
    pairs = state.replicas_of(model)
    bases = {replica.base for _, replica in pairs if replica.base is not None}
    parent = min(bases, default=None) if profile is None else profile.base
    # What runs says best what it can do; of others, their files; of adapters, their base.
    told = state.told_of(model if pairs or parent is None else parent)
    files = state.known.get(parent or model, Known())
    limit = told.limit or files.limit
    context, output = (None, None) if limit is None else (limit.context, limit.output)
    if context is None and host is not None:
        context = host.context
    return ModelObject(
        id=model,
        created=created,
        created_at=_rfc3339(created),
        display_name=model.rsplit("/", 1)[-1],
        loaded=any(node.is_reachable and replica.is_servable for node, replica in pairs),
        feasible_on=() if host is None else _feasible_on(state, host),
        locations=tuple(
            sorted(
                (_location(state, node, replica, profile) for node, replica in pairs),
                key=lambda location: location.node,
            )
        ),
        limit=None if context is None and output is None else Limit(context=context, output=output),
        max_model_len=context,
        max_input_tokens=context,
        max_tokens=output if output is not None else context,
        capabilities=told.capabilities or files.capabilities,
        parent=parent,
        reason=_reason(state, model, pairs),
    )


def _known_models(state: FleetState, catalogue: Catalogue) -> list[ModelId]:
    known: dict[ModelId, None] = dict.fromkeys(catalogue.profiles)
    for node in state.nodes.values():
        known.update(dict.fromkeys(node.replicas))
    return list(known)


def _feasible_on(state: FleetState, profile: Profile) -> tuple[NodeName, ...]:
    known = estimated(state, profile)
    nodes = state.nodes.values()
    return tuple(sorted(n.name for n in nodes if is_feasible(sized(state, known, n), n)))


def _location(
    state: FleetState, node: NodeState, replica: Replica, profile: Profile | None
) -> ModelLocation:
    status = replica.status if node.is_reachable else ReplicaStatus.UNKNOWN
    used, estimate_mb = node.size_of(replica), None
    if used is None and profile is not None:
        estimate_mb = sized(state, estimated(state, profile), node).vram_mb
    return ModelLocation(
        node=node.name,
        status=status.value,
        vram_estimate_mb=estimate_mb if used is None else mib_from_bytes(used),
    )


def _reason(
    state: FleetState, model: ModelId, pairs: Iterable[tuple[NodeState, Replica]]
) -> str | None:
    for target, failure in state.failures.items():
        if target.model == model:
            return f"the last load on {target.node} failed: {failure.reason}"
    for node, replica in pairs:
        if node.is_reachable and replica.error is not None and not replica.is_servable:
            return f"{replica.status} on {node.name}: {replica.error}"
    return None


def _rfc3339(epoch_s: int) -> str:
    moment = datetime.datetime.fromtimestamp(epoch_s, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
