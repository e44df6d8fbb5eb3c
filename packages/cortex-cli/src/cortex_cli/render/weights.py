"""Weights on the disks of nodes."""

from collections.abc import Sequence

import msgspec

from cortex_cli.context import Style
from cortex_cli.render.text import NOTHING, clean, gib, painted, size, table, text_of
from cortex_core.ids import NodeName
from cortex_core.wire.weights import WeightsEntry, WeightsList, WeightsNews


class NodeWeights(msgspec.Struct, frozen=True, kw_only=True):
    """What is on the disk of one node."""

    node: NodeName
    weights: WeightsList | None = None
    """`None` when it cannot be asked."""
    error: str | None = None
    """Why it cannot."""


def render_weights(nodes: Sequence[NodeWeights], style: Style) -> str:
    """Return a table of models and a line for each disk, lines that end in a newline."""
    rows = [row for one in nodes if one.weights for row in _rows(one.node, one.weights, style)]
    lines = table(("NODE", "MODEL", "SIZE", "STATE", "NOTE"), rows, style) if rows else []
    disks = [_disk(one) for one in nodes]
    return text_of([*lines, *([""] if lines and disks else []), *disks], style)


def render_news(news: WeightsNews, node: str, style: Style) -> str:
    """Return what became of a download or a model, in one line."""
    return text_of([f"{clean(news.id)} on {clean(node)}: {painted(news.status, style)}"], style)


def _rows(node: NodeName, found: WeightsList, style: Style) -> list[tuple[str, ...]]:
    coming = {news.id: news for news in found.downloads}
    here = [
        (clean(node), clean(entry.id), size(entry.size_bytes), *_state(entry, coming, style))
        for entry in found.models
    ]
    known = {entry.id for entry in found.models}
    new = [
        (clean(node), clean(news.id), NOTHING, painted(news.status, style), _progress(news))
        for news in found.downloads
        if news.id not in known
    ]
    return [*here, *new]


def _state(entry: WeightsEntry, coming: dict[str, WeightsNews], style: Style) -> tuple[str, str]:
    if entry.id in coming:
        return painted(coming[entry.id].status, style), _progress(coming[entry.id])
    notes = [
        word
        for word, holds in (
            ("in use", entry.in_use),
            ("pinned", entry.pinned),
            ("read only", not entry.removable),
        )
        if holds
    ]
    revisions = [clean(name) for name in entry.revisions if name != "main"]
    state = "ready" if entry.complete else "incomplete"
    return painted(state, style), ", ".join([*notes, *revisions])


def _progress(news: WeightsNews) -> str:
    if news.done_bytes is None or not news.total_bytes:
        return ""
    text = f"{gib(news.done_bytes)} of {size(news.total_bytes)}"
    return text if news.eta_s is None else f"{text}, {news.eta_s:.0f} s left"


def _disk(one: NodeWeights) -> str:
    name = clean(one.node)
    if one.weights is None or one.weights.disk is None:
        return f"{name}: {clean(one.error or 'nothing is known of its disk')}"
    disk = one.weights.disk
    budget = "" if disk.budget_bytes is None else f" of a budget of {size(disk.budget_bytes)}"
    return f"{name}: {size(disk.used_bytes)} in use{budget}, {size(disk.free_bytes)} free"
