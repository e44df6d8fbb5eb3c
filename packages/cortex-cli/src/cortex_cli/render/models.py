"""Models, one line each, however many nodes have one."""

import msgspec

from cortex_cli.context import Style
from cortex_cli.render.text import NOTHING, clean, painted, size, table, text_of
from cortex_core.fleet.overview import FleetOverview, ReplicaView
from cortex_core.ids import ModelId, NodeName


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A node that has a model."""

    node: NodeName
    status: str
    sleep_level: int | None = None
    pinned: bool = False
    vram_used_bytes: int | None = None


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue, or one that a node has."""

    id: ModelId
    tier: str
    """How quickly it would answer: the best of its locations, else `unloaded`."""
    locations: tuple[Location, ...] = ()
    """By node."""
    size_bytes: int | None = None
    """What it holds where it is, else the catalogue's estimate."""
    feasible_on: tuple[NodeName, ...] = ()
    """For one that is nowhere: nodes that could ever hold it."""
    reason: str | None = None
    """For one that is nowhere: why."""
    base: ModelId | None = None
    """Model on whose engine it is, or would be, where it is an adapter."""


# From the quickest answer to none.
_TIERS = ("loaded", "loading", "reloading", "recovering", "sleeping", "unloading")


def model_rows(overview: FleetOverview) -> tuple[ModelRow, ...]:
    """Return a row for each model, by id."""
    found: dict[ModelId, list[tuple[NodeName, ReplicaView]]] = {}
    for node in overview.nodes:
        for model in node.models:
            found.setdefault(model.id, []).append((node.name, model))
    rows = [_placed(model, places) for model, places in found.items()]
    rows += [
        ModelRow(
            id=model.id,
            tier="unloaded",
            size_bytes=model.vram_bytes,
            feasible_on=model.feasible_on,
            reason=model.reason,
            base=model.base,
        )
        for model in overview.unloaded
    ]
    return tuple(sorted(rows, key=lambda row: row.id))


def render_models(rows: tuple[ModelRow, ...], style: Style) -> str:
    """Return the table of models, lines that end in a newline."""
    if not rows:
        return text_of(["there are no models"], style)
    cells = [
        (
            clean(row.id),
            painted(row.tier, style),
            size(row.size_bytes),
            clean(", ".join(_where(place) for place in row.locations)) or NOTHING,
            clean(_note(row)),
        )
        for row in rows
    ]
    return text_of(table(("MODEL", "TIER", "SIZE", "NODES", "NOTE"), cells, style), style)


def _placed(model: ModelId, places: list[tuple[NodeName, ReplicaView]]) -> ModelRow:
    statuses = [view.status for _, view in places]
    best = min(statuses, key=lambda s: _TIERS.index(s) if s in _TIERS else len(_TIERS))
    sizes = [view.vram_used_bytes for _, view in places if view.vram_used_bytes]
    return ModelRow(
        id=model,
        tier=best,
        locations=tuple(
            Location(
                node=node,
                status=view.status,
                sleep_level=view.sleep_level,
                pinned=view.pinned,
                vram_used_bytes=view.vram_used_bytes,
            )
            for node, view in places
        ),
        size_bytes=max(sizes, default=None),
        reason=next((view.error for _, view in places if view.error), None),
        base=next((view.base for _, view in places if view.base), None),
    )


def _where(place: Location) -> str:
    marks = [] if place.status == "loaded" else [place.status]
    if place.sleep_level is not None:
        marks.append(f"level {place.sleep_level}")
    if place.pinned:
        marks.append("pinned")
    return f"{place.node} ({', '.join(marks)})" if marks else place.node


def _note(row: ModelRow) -> str:
    note = _state(row)
    if row.base is None:
        return note
    return f"on {row.base}; {note}" if note else f"on {row.base}"


def _state(row: ModelRow) -> str:
    if row.locations:
        return row.reason or ""
    feasible = ", ".join(row.feasible_on)
    first = f"loads on demand on {feasible}" if feasible else "fits on no node"
    return first if row.reason is None else f"{first}; {row.reason}"
