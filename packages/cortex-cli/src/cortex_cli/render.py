"""The fleet as text for a terminal: tables, memory bars, colours. Pure."""

import unicodedata
from collections.abc import Iterable, Sequence

import click

from cortex_cli.context import Style
from cortex_core.fleet.overview import (
    DeviceView,
    FleetOverview,
    NodeView,
    ReplicaView,
    UnloadedView,
)
from cortex_core.replica import LoadProgress
from cortex_core.routing.explain import Explanation

GIB = 1 << 30
BAR_CELLS = 20
"""Wide enough for steps of 5 % (0.6 % with eighths), narrow enough for 80 columns."""

_EIGHTHS = " ▏▎▍▌▋▊▉"
_WELL = frozenset({"ok", "up", "loaded", "serve", "load"})
_COMING = frozenset(
    {"loading", "reloading", "recovering", "unloading", "sleeping", "suspect"}
    | {"coming", "evict", "wait"}
)
_NOTHING = "-"


def render_fleet(overview: FleetOverview, style: Style) -> str:
    """Return the whole overview, lines that end in a newline.

    Args:
        overview: what the gateway said; its strings are taken from other machines, so control
            characters in them are replaced.
        style: what the terminal can show.
    """
    up = sum(node.health == "up" for node in overview.nodes)
    headline = f"fleet {_painted(overview.status, style)}: {up} of {len(overview.nodes)} nodes up"
    blocks = [[headline]]
    if overview.nodes:
        blocks.append(_node_table(overview.nodes, style))
    if any(node.devices for node in overview.nodes):
        blocks.append(_device_table(overview.nodes, style))
    if overview.unloaded or any(node.models for node in overview.nodes):
        blocks.append(_model_table(overview, style))
    text = "\n\n".join("\n".join(lines) for lines in blocks) + "\n"
    return text if style.is_unicode else text.encode("ascii", "replace").decode()


def render_explanation(explanation: Explanation, style: Style) -> str:
    """Return what would become of a request, lines that end in a newline."""
    outcome = _painted(explanation.outcome, style)
    rows = [
        (_clean(node.node), _painted(node.outcome, style), _clean(node.reason))
        for node in explanation.nodes
    ]
    lines = [f"{outcome}: {_clean(explanation.summary)}"]
    if rows:
        lines += ["", *table(("NODE", "OUTCOME", "WHY"), rows, style)]
    text = "\n".join(lines) + "\n"
    return text if style.is_unicode else text.encode("ascii", "replace").decode()


def bar(used: int, total: int, *, is_unicode: bool, cells: int = BAR_CELLS) -> str:
    """Return a bar of `cells` characters, filled as `used` is of `total`.

    Less than nothing counts as nothing and more than all as all; a `total` of 0 gives an
    empty bar. Anything above 0 shows at least one step.
    """
    share = min(1.0, max(0.0, used / total)) if total > 0 else 0.0
    if not is_unicode:
        full = _steps(share, cells)
        return "#" * full + "." * (cells - full)
    eighths = _steps(share, cells * 8)
    full, rest = divmod(eighths, 8)
    filled = "█" * full + (_EIGHTHS[rest] if rest else "")
    return filled + "░" * (cells - len(filled))


def size(size_bytes: int | None) -> str:
    """Return bytes as GiB with one digit after the point, or `-` when not known."""
    return _NOTHING if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], style: Style) -> list[str]:
    """Return aligned lines: columns two blanks apart, each as wide as its widest cell.

    Args:
        header: names of the columns.
        rows: cells, as many in each row as in `header`; they may hold colours.
        style: whether to paint the header.
    """
    body = [[click.style(name, bold=True) if style.is_coloured else name for name in header]]
    body.extend(list(row) for row in rows)
    widths = [max(_width(row[column]) for row in body) for column in range(len(header))]
    return [
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in body
    ]


def _node_table(nodes: Sequence[NodeView], style: Style) -> list[str]:
    rows = [
        (
            _clean(node.name),
            _painted(node.health, style),
            _clean(node.version or _NOTHING),
            _clean(node.endpoint),
            _clean(_node_note(node)),
        )
        for node in nodes
    ]
    return table(("NODE", "HEALTH", "VERSION", "ENDPOINT", "NOTE"), rows, style)


def _node_note(node: NodeView) -> str:
    notes = []
    if node.draining:
        notes.append("draining")
    if node.last_error is not None:
        notes.append(node.last_error)
    if node.cuda_unavailable_reason is not None:
        notes.append(f"no CUDA: {node.cuda_unavailable_reason}")
    activation = node.activation
    if activation is not None:
        left = len(activation.pending) + (activation.in_progress is not None)
        if left:
            notes.append(f"{left} default model(s) to load")
        notes.extend(f"{failure.model_id}: {failure.error}" for failure in activation.failed)
    return "; ".join(notes)


def _device_table(nodes: Sequence[NodeView], style: Style) -> list[str]:
    rows = [_device_row(node, device, style) for node in nodes for device in node.devices]
    return table(("DEVICE", "NAME", "MEMORY", "", "BUSY", "TEMP"), rows, style)


def _device_row(node: NodeView, device: DeviceView, style: Style) -> tuple[str, ...]:
    total = device.vram_total_bytes
    used = device.vram_used_bytes
    if used is None and total is not None and device.vram_free_bytes is not None:
        used = max(0, total - device.vram_free_bytes)
    gauge = ""
    if used is not None and total:
        gauge = bar(used, total, is_unicode=style.is_unicode)
    return (
        f"{_clean(node.name)}/{device.index}",
        _clean(device.name) or _NOTHING,
        gauge or _NOTHING,
        _NOTHING if used is None and total is None else f"{_gib(used)} of {size(total)}",
        _NOTHING if device.utilization_ratio is None else f"{device.utilization_ratio:.0%}",
        _NOTHING
        if device.temp_c is None
        else f"{device.temp_c:.0f} {'°C' if style.is_unicode else 'C'}",
    )


def _model_table(overview: FleetOverview, style: Style) -> list[str]:
    rows = [_model_row(node, model, style) for node in overview.nodes for model in node.models]
    rows.extend(_unloaded_row(model) for model in overview.unloaded)
    rows.sort(key=lambda row: row[0])
    header = ("MODEL", "NODE", "STATUS", "DEVICES", "MEMORY", "IN FLIGHT", "QUEUED", "NOTE")
    return table(header, rows, style)


def _model_row(node: NodeView, model: ReplicaView, style: Style) -> tuple[str, ...]:
    notes = [] if model.progress is None else [_progress(model.progress)]
    if model.error is not None:
        notes.append(model.error)
    return (
        _clean(model.id),
        _clean(node.name),
        _painted(model.status, style),
        ",".join(str(index) for index in model.devices) or _NOTHING,
        size(model.vram_used_bytes),
        str(model.in_flight),
        str(model.queued),
        _clean("; ".join(notes)),
    )


def _unloaded_row(model: UnloadedView) -> tuple[str, ...]:
    feasible = ", ".join(model.feasible_on)
    notes = [f"loads on demand on {feasible}"] if feasible else ["fits on no node"]
    if model.reason is not None:
        notes.append(model.reason)
    nothing = (_NOTHING,) * 4
    return (
        _clean(model.id), _NOTHING, "unloaded", *nothing, _clean("; ".join(notes)),
    )  # fmt: skip


def _progress(progress: LoadProgress) -> str:
    text = progress.stage
    if progress.done_bytes is not None:
        text += f" {_gib(progress.done_bytes)} of {size(progress.total_bytes)}"
    if progress.eta_s is not None:
        text += f", {progress.eta_s:.0f} s left"
    return text


def _gib(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else f"{size_bytes / GIB:.1f}"


def _steps(share: float, steps: int) -> int:
    return max(1, round(share * steps)) if share > 0 else 0


def _painted(word: str, style: Style) -> str:
    word = _clean(word)
    if not style.is_coloured:
        return word
    if word in _WELL:
        return click.style(word, fg="green")
    return click.style(word, fg="yellow" if word in _COMING else "red")


def _clean(text: str) -> str:
    """Return `text` on one line, without anything that a terminal would obey."""
    return "".join(
        " " if character in "\n\t" else character if character.isprintable() else "�"
        for character in text
    )


def _width(cell: str) -> int:
    """Return the columns that `cell` takes on a terminal; colours take none."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in click.unstyle(cell)
    )
