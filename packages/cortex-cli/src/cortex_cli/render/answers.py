"""What a gateway says of a question, and of what it was told to do."""

from collections.abc import Sequence

from cortex_cli.context import Style
from cortex_cli.render.fleet import node_note
from cortex_cli.render.text import bar, clean, gib, painted, size, table, text_of
from cortex_core.fleet.overview import NodeView
from cortex_core.routing.explain import Explanation
from cortex_core.units import MIB
from cortex_core.wire.admin import (
    CordonAnswer,
    DrainAnswer,
    LoadNews,
    ModelAnswer,
    NodeOutcome,
    ReloadAnswer,
)


def render_explanation(explanation: Explanation, style: Style) -> str:
    """Return what would become of a request, lines that end in a newline."""
    outcome = painted(explanation.outcome, style)
    rows = [
        (clean(node.node), painted(node.outcome, style), clean(node.reason))
        for node in explanation.nodes
    ]
    lines = [f"{outcome}: {clean(explanation.summary)}"]
    if rows:
        lines += ["", *table(("NODE", "OUTCOME", "WHY"), rows, style)]
    return text_of(lines, style)


def render_nodes(nodes: Sequence[NodeView], style: Style) -> str:
    """Return the table of nodes, lines that end in a newline."""
    if not nodes:
        return text_of(["there are no nodes"], style)
    rows = []
    for node in nodes:
        used = sum(device.vram_used_bytes or 0 for device in node.devices)
        total = sum(device.vram_total_bytes or 0 for device in node.devices)
        rows.append(
            (
                clean(node.name),
                painted(node.health, style),
                str(len(node.devices)),
                f"{gib(used)} of {size(total)}" if total else "-",
                str(sum(model.status == "loaded" for model in node.models)),
                clean(node_note(node)),
            )
        )
    return text_of(
        table(("NODE", "HEALTH", "DEVICES", "MEMORY", "LOADED", "NOTE"), rows, style), style
    )


def render_model_answer(answer: ModelAnswer, style: Style) -> str:
    """Return what was done to a model, a line for each node."""
    model = clean(answer.model)
    if not answer.nodes:
        return text_of([f"{model}: no node has it"], style)
    return text_of([f"{model}: {_outcome(answer, one, style)}" for one in answer.nodes], style)


def render_cordon(answer: CordonAnswer, style: Style) -> str:
    """Return what was done to a node, in one line."""
    how = "already " if not answer.changed else "would be " if answer.dry_run else ""
    return text_of([f"{clean(answer.node)}: {how}{painted(answer.status, style)}"], style)


def render_drain(answer: DrainAnswer, style: Style) -> str:
    """Return what became of the models on a node that was drained."""
    node = clean(answer.node)
    would = "would be " if answer.dry_run else ""
    if answer.drained:
        lines = [f"{node}: {would}{painted('drained', style)}"]
    else:
        stay = sum(one.outcome == "stays" for one in answer.models)
        lines = [f"{node}: {would}cordoned, and {stay} model(s) {'would ' * answer.dry_run}stay"]
    rows = [
        (
            clean(one.model),
            painted(one.outcome, style),
            clean(one.to or "-"),
            clean(one.reason),
        )
        for one in answer.models
    ]
    if rows:
        lines += ["", *table(("MODEL", "OUTCOME", "TO", "WHY"), rows, style)]
    return text_of(lines, style)


def render_reload(answer: ReloadAnswer, style: Style) -> str:
    """Return what a reload has changed, a line each."""
    lines = [f"{change.change}: {clean(change.path)}" for change in answer.changed]
    lines = lines or ["nothing has changed"]
    lines += [f"takes a restart: {clean(path)}" for path in answer.needs_restart]
    return text_of(lines, style)


def progress_line(news: LoadNews, style: Style) -> str:
    """Return how far a load is as one line without its end, with a bar where sizes are known."""
    where = f" on {news.node}" if news.node else ""
    text = f"{clean(news.model + where)}: {clean(news.stage)}"
    if news.done_bytes is not None and news.total_bytes:
        gauge = bar(news.done_bytes, news.total_bytes, is_unicode=style.is_unicode)
        text += f" {gauge} {gib(news.done_bytes)} of {size(news.total_bytes)}"
    if news.bytes_per_s is not None:
        text += f", {news.bytes_per_s / MIB:.1f} MiB/s"
    if news.eta_s is not None:
        text += f", {news.eta_s:.0f} s left"
    return text if style.is_unicode else text.encode("ascii", "replace").decode()


def _outcome(answer: ModelAnswer, one: NodeOutcome, style: Style) -> str:
    where = f" on {clean(one.node)}" if one.node else ""
    status = painted(one.status, style)
    why = f" ({clean(one.reason)})" if one.reason else ""
    if answer.dry_run and answer.action == "load":
        return f"{status}{where}{why}"
    if not one.changed:
        return f"already {status}{where}{why}"
    return f"{'would be ' if answer.dry_run else ''}{status}{where}{why}"
