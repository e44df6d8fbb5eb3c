"""The whole fleet: nodes, devices with their memory, models with where they are."""

from collections.abc import Sequence

from cortex_cli.context import Style
from cortex_cli.render.text import (
    NOTHING,
    bar,
    clean,
    gib,
    painted,
    size,
    table,
    text_of,
    told,
)
from cortex_core.fleet.overview import (
    DeviceView,
    FleetOverview,
    NodeView,
    ReplicaView,
    UnloadedView,
)

_WELL = ("ok", "unknown")
"""Conditions that nobody needs to be told of."""

_WORTH_TELLING_BYTES = 256 << 20
"""Less than that in use by others is what the driver itself takes."""


def render_fleet(overview: FleetOverview, style: Style) -> str:
    """Return the whole overview, lines that end in a newline.

    Args:
        overview: what the gateway said; its strings are taken from other machines, so control
            characters in them are replaced.
        style: what the terminal can show.
    """
    up = sum(node.health == "up" for node in overview.nodes)
    headline = f"fleet {painted(overview.status, style)}: {up} of {len(overview.nodes)} nodes up"
    blocks = [[headline]]
    if overview.nodes:
        blocks.append(_node_table(overview.nodes, style))
    if any(node.devices for node in overview.nodes):
        blocks.append(_device_table(overview.nodes, style))
    if overview.unloaded or any(node.models for node in overview.nodes):
        blocks.append(_model_table(overview, style))
    return text_of(["\n\n".join("\n".join(lines) for lines in blocks)], style)


def _node_table(nodes: Sequence[NodeView], style: Style) -> list[str]:
    rows = [
        (
            clean(node.name),
            painted(node.health, style),
            clean(node.version or NOTHING),
            clean(node.endpoint),
            clean(node_note(node)),
        )
        for node in nodes
    ]
    return table(("NODE", "HEALTH", "VERSION", "ENDPOINT", "NOTE"), rows, style)


def node_note(node: NodeView) -> str:
    """Return what is worth a word about a node; often nothing."""
    notes = []
    if node.draining:
        notes.append("draining")
    if node.cordoned:
        notes.append("cordoned")
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
    header = ("DEVICE", "NAME", "MEMORY", "", "BUSY", "TEMP", "POWER", "NOTE")
    return table(header, rows, style)


def device_note(device: DeviceView) -> str:
    """Return what is worth a word about a device; often nothing."""
    condition = [] if device.condition in _WELL else [device.condition]
    if device.condition_reason is not None:
        condition.append(device.condition_reason)
    notes = [": ".join(condition)] if condition else []
    if (device.other_used_bytes or 0) >= _WORTH_TELLING_BYTES:
        notes.append(f"{size(device.other_used_bytes)} used by others")
    return "; ".join(notes)


def _device_row(node: NodeView, device: DeviceView, style: Style) -> tuple[str, ...]:
    total = device.vram_total_bytes
    used = device.vram_used_bytes
    if used is None and total is not None and device.vram_free_bytes is not None:
        used = max(0, total - device.vram_free_bytes)
    gauge = ""
    if used is not None and total:
        gauge = bar(used, total, is_unicode=style.is_unicode)
    return (
        f"{clean(node.name)}/{device.index}",
        clean(device.name) or NOTHING,
        gauge or NOTHING,
        NOTHING if used is None and total is None else f"{gib(used)} of {size(total)}",
        NOTHING if device.utilization_ratio is None else f"{device.utilization_ratio:.0%}",
        NOTHING
        if device.temp_c is None
        else f"{device.temp_c:.0f} {'°C' if style.is_unicode else 'C'}",
        _power(device),
        clean(device_note(device)),
    )


def _power(device: DeviceView) -> str:
    if device.power_w is None:
        return NOTHING
    limit = "" if device.power_limit_w is None else f" of {device.power_limit_w:.0f}"
    return f"{device.power_w:.0f}{limit} W"


def _model_table(overview: FleetOverview, style: Style) -> list[str]:
    rows = [_model_row(node, model, style) for node in overview.nodes for model in node.models]
    rows.extend(_unloaded_row(model) for model in overview.unloaded)
    rows.sort(key=lambda row: row[0])
    header = ("MODEL", "NODE", "STATUS", "DEVICES", "MEMORY", "IN FLIGHT", "QUEUED", "NOTE")
    return table(header, rows, style)


def _model_row(node: NodeView, model: ReplicaView, style: Style) -> tuple[str, ...]:
    notes = [] if model.progress is None else [told(model.progress)]
    if model.sleep_level is not None:
        notes.append(f"level {model.sleep_level}")
    if model.pinned:
        notes.append("pinned")
    if model.error is not None:
        notes.append(model.error)
    return (
        clean(model.id),
        clean(node.name),
        painted(model.status, style),
        ",".join(str(index) for index in model.devices) or NOTHING,
        size(model.vram_used_bytes),
        str(model.in_flight),
        str(model.queued),
        clean("; ".join(notes)),
    )


def _unloaded_row(model: UnloadedView) -> tuple[str, ...]:
    feasible = ", ".join(model.feasible_on)
    notes = [f"loads on demand on {feasible}"] if feasible else ["fits on no node"]
    if model.reason is not None:
        notes.append(model.reason)
    nothing = (NOTHING,) * 4
    return (
        clean(model.id), NOTHING, "unloaded", *nothing, clean("; ".join(notes)),
    )  # fmt: skip
