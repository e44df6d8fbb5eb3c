"""Whether a model would load, as tables."""

from collections.abc import Iterator

from cortex_cli.context import Style
from cortex_cli.render.text import NOTHING, clean, painted, size, table, text_of
from cortex_core.wire.fit import FleetFit, NodeFit, Verdict


def render_fit(found: FleetFit, style: Style) -> str:
    """Return a line for each node, then what is to be said of each, as lines with newlines.

    All checks are shown where one node was asked, else those that are not fine.
    """
    if not found.nodes:
        return text_of(["there are no nodes to ask"], style)
    cells = [
        (
            clean(one.node),
            painted("ok" if one.report is not None and one.report.ok else "no", style),
            _need(one),
            clean(_why(one)),
        )
        for one in found.nodes
    ]
    lines = table(("NODE", "FITS", "NEEDS", "WHY"), cells, style)
    is_alone = len(found.nodes) == 1
    for one in found.nodes:
        checks = list(_checks(one, style, is_whole=is_alone))
        if checks:
            head = (f"CHECK ({clean(one.node)})", "VERDICT", "WHAT")
            lines += ["", *table(head, checks, style)]
    return text_of(lines, style)


def _need(one: NodeFit) -> str:
    return NOTHING if one.report is None else size(one.report.needed.total_bytes)


def _why(one: NodeFit) -> str:
    if one.report is None:
        return one.error or "it did not say"
    failed = one.report.failures
    if not failed:
        return ""
    suggestion = one.report.suggestion
    return failed[0].message + (f"; {suggestion.message}" if suggestion is not None else "")


def _checks(one: NodeFit, style: Style, *, is_whole: bool) -> Iterator[tuple[str, str, str]]:
    for check in one.report.checks if one.report is not None else ():
        if is_whole or check.verdict in (Verdict.FAILED, Verdict.WARNING):
            yield clean(check.name), painted(check.verdict, style), clean(check.message)
