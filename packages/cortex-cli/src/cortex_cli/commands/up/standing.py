"""How far a fleet that is being started is. Pure."""

from collections.abc import Sequence

import msgspec

from cortex_core.fleet.overview import FleetOverview, NodeView, ReplicaView

HOPELESS = frozenset({"failed", "poisoned"})
"""Statuses from which nothing comes by itself while a fleet starts."""


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Every node is up and every model would answer."""


class Coming(msgspec.Struct, frozen=True, kw_only=True):
    """Not yet."""

    text: str
    """What is waited for, one line."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """Never, as it is."""

    reason: str
    """Why, one line."""


def standing(overview: FleetOverview, models: Sequence[str]) -> Ready | Coming | Failed:
    """Return how far the fleet is with `models`, n >= 1."""
    missing: list[str] = []
    for model in models:
        found = [
            (node, replica)
            for node in overview.nodes
            for replica in node.models
            if replica.id == model
        ]
        if any(replica.servable for _, replica in found):
            continue
        reason = _failure(overview, found, model)
        if reason is not None:
            return Failed(reason=reason)
        missing.append(_how_far(found, model))
    # A node without models would be ready later than the fleet, which then shows as degraded.
    missing += [f"{node.name} {node.health}" for node in overview.nodes if node.health != "up"]
    return Coming(text=", ".join(missing)) if missing else Ready()


def _failure(
    overview: FleetOverview, found: Sequence[tuple[NodeView, ReplicaView]], model: str
) -> str | None:
    for node, replica in found:
        if replica.status in HOPELESS:
            why = replica.error or "the neuron does not say why"
            return f"{model} did not load on {node.name}: {why}"
    for node in overview.nodes:
        for failure in node.activation.failed if node.activation else ():
            if failure.model_id == model:
                return f"{model} did not load on {node.name}: {failure.error}"
    return None


def _how_far(found: Sequence[tuple[NodeView, ReplicaView]], model: str) -> str:
    if not found:
        return f"{model} waits"
    _, replica = found[0]
    progress = replica.progress
    if progress is None:
        return f"{model} {replica.status}"
    share = ""
    if progress.done_bytes is not None and progress.total_bytes:
        share = f" {progress.done_bytes / progress.total_bytes:.0%}"
    return f"{model} {replica.status} ({progress.stage}{share})"
