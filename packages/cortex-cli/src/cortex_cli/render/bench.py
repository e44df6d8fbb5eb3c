"""What a load came to, as lines."""

from collections.abc import Mapping

from cortex_cli.bench.lag import Lag
from cortex_cli.bench.samples import Spread, Summary
from cortex_cli.context import Style
from cortex_cli.render.text import NOTHING, clean, table, text_of

_ROWS = ("late", "first_byte", "first_token", "gap", "total")

_LATE_S = 0.05
"""A measuring machine that sends so late does not know when answers came either."""


def render_bench(summaries: Mapping[str, Summary], style: Style) -> str:
    """Return what came of the same load on one or several servers.

    Args:
        summaries: by the server's address; times of the others are compared with the first's.
        style: what the output can show.
    """
    lines: list[str] = []
    first, *others = summaries.values()
    for address, summary in summaries.items():
        lines.append(clean(address))
        lines += [f"  {line}" for line in _lines(summary, style)]
        if summary is first:
            lines.append(f"  lag of its event loop: {_lag(summary.lag)}")
    for address, other in zip(list(summaries)[1:], others, strict=True):
        lines.append(f"{clean(address)} against the first")
        lines += [f"  {line}" for line in table(*_compared(first, other), style)]
    return text_of(lines, style)


def _lines(summary: Summary, style: Style) -> list[str]:
    ended = ", ".join(f"{count} {clean(name)}" for name, count in summary.outcomes.items())
    lines = [f"{summary.requests} requests, {summary.offered_per_s:g} a second: {ended or 'none'}"]
    rows = [(name.replace("_", " "), *_cells(getattr(summary, name))) for name in _ROWS]
    lines += table(("MS", "N", "P50", "P99", "P99.9", "MAX"), rows, style)
    if summary.events_per_s:
        lines.append(f"{summary.events_per_s:.0f} events a second")
    if summary.late is not None and summary.late.p99_s > _LATE_S:
        lines.append("this machine was too slow to send in time: believe none of it")
    return lines


def _compared(
    first: Summary, other: Summary
) -> tuple[tuple[str, ...], list[tuple[str, str, str, str]]]:
    rows = []
    for name in _ROWS[1:]:
        one, two = getattr(first, name), getattr(other, name)
        if one is not None and two is not None:
            ratio = f"{two.p50_s / one.p50_s:.2f}" if one.p50_s else NOTHING
            rows.append(
                (
                    name.replace("_", " "),
                    _ms(two.p50_s - one.p50_s),
                    _ms(two.p99_s - one.p99_s),
                    ratio,
                )
            )
    return ("MS", "P50 ADDED", "P99 ADDED", "P50 RATIO"), rows


def _cells(spread: Spread | None) -> tuple[str, ...]:
    if spread is None:
        return ("0", NOTHING, NOTHING, NOTHING, NOTHING)
    times = (spread.p50_s, spread.p99_s, spread.p999_s, spread.max_s)
    return (str(spread.count), *(_ms(seconds) for seconds in times))


def _lag(lag: Lag | None) -> str:
    if lag is None:
        return "not known"
    p50, p99 = (
        "beyond what is told" if edge_s is None else f"at most {_ms(edge_s)} ms"
        for edge_s in (lag.p50_s, lag.p99_s)
    )
    return f"p50 {p50}, p99 {p99}, of {lag.looks} looks"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
