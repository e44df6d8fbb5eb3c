"""What the rounds come to: medians, ratios to the lightest, to one another, and what is aimed at."""

import statistics
from collections.abc import Mapping, Sequence

import msgspec

OURS, DIRECT = "cortex", "direct"

NO_RATIO = ("cut_after", "others_cores")
"""Measures of which a ratio would say nothing."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway came to in one round."""

    name: str
    numbers: Mapping[str, float | None]
    """By measure; `None`, or none, where it does not do what is measured."""
    failed: Mapping[str, str] = {}
    """Why, by scenario."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run measured."""

    date: str
    machine: str
    command: str
    versions: Mapping[str, str]
    left_out: Mapping[str, str]
    """Why some were not measured, by name."""
    titles: Mapping[str, str]
    """Of the measures, by key, in the order in which they are shown."""
    rounds: tuple[Round, ...]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """Something aimed at: a number of ours, alone or as a ratio to somebody's."""

    title: str
    measure: str
    most: float
    over: str | None = None


GOALS = (
    Goal(title="added latency, of smg's", measure="added_1k_ms", over="smg", most=1.0),
    Goal(title="added latency, of LiteLLM's", measure="added_1k_ms", over="litellm", most=1 / 30),
    Goal(title="CPU per call, of smg's", measure="cpu_s_per_1000_calls", over="smg", most=1.0),
    Goal(
        title="CPU per call, of LiteLLM's",
        measure="cpu_s_per_1000_calls",
        over="litellm",
        most=1 / 50,
    ),
    Goal(
        title="CPU per streamed chunk, of smg's",
        measure="cpu_s_per_1000_chunks_long",
        over="smg",
        most=1.3,
    ),
    Goal(
        title="p99 of the loop's lag, 5,000 streams open, ms",
        measure="open_5000_lag_p99_ms",
        most=10.0,
    ),
    Goal(title="memory per open stream, KiB", measure="open_5000_kib", most=60.0),
)
"""Source: the issue that this was written for."""

Medians = Mapping[str, Mapping[str, float | None]]


def medians(report: Report) -> dict[str, dict[str, float | None]]:
    """Return the median of every measure, by gateway, in the order of the first round."""
    names = dict.fromkeys(one.name for one in report.rounds)
    return {
        name: {
            measure: statistics.median(values) if values else None
            for measure in report.titles
            for values in [_values(report, name, measure)]
        }
        for name in names
    }


def _values(report: Report, name: str, measure: str) -> list[float]:
    found = (one.numbers.get(measure) for one in report.rounds if one.name == name)
    return sorted(value for value in found if value is not None)


def page(report: Report, plot: str | None = None) -> str:
    """Return the report as a page in Markdown.

    Args:
        report: of at least one round.
        plot: name of the picture beside the page.
    """
    found = medians(report)
    count = max((sum(one.name == name for one in report.rounds) for name in found), default=0)
    lines = [
        f"# Gateways side by side, {report.date}",
        "",
        f"Written by `{report.command}` on {report.machine}.",
        f"Medians of {count} interleaved rounds, lowest and highest in brackets; `direct` is the "
        "node itself, measured like a gateway.",
        "What is *added* was measured against the node in turns within each round, so the "
        "additions of `direct` show what the measuring itself is good for.",
        "Each gateway has one core; node and callers share the other one, so that calls a second "
        "of the quickest are bounded by those.",
        "Slow ones (portkey, litellm) get less of every load, at lower rates.",
        *(["", f"![The main numbers as bars]({plot})"] if plot else []),
        *["", "## What is aimed at", "", *_goals(found)],
        *["", "## Numbers", "", *_numbers(report, found)],
        *["", "## Ratios", "", *_ratios(report, found)],
        *["", "## Versions", "", f"{_listed(report.versions)}."],
    ]
    if report.left_out:
        lines += ["", f"Left out: {_listed(report.left_out)}."]
    failures = {
        f"{one.name} ({scenario})": why
        for one in report.rounds
        for scenario, why in one.failed.items()
    }
    if failures:
        lines += ["", "Not done by all:", ""]
        lines += [f"- {who}: {why}" for who, why in failures.items()]
    return "\n".join(lines) + "\n"


def _goals(found: Medians) -> list[str]:
    lines = ["| aim | at most | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        value = reached(goal, found)
        said = "not measured" if value is None else ("yes" if value <= goal.most else "**no**")
        shown = "-" if value is None else _number(value)
        lines.append(f"| {goal.title} | {_number(goal.most)} | {shown} | {said} |")
    return lines


def reached(goal: Goal, found: Medians) -> float | None:
    """Return what a goal came to; `None` where it was not measured."""
    ours = found.get(OURS, {}).get(goal.measure)
    if goal.over is None or ours is None:
        return ours
    theirs = found.get(goal.over, {}).get(goal.measure)
    return ours / theirs if theirs and theirs > 0 else None


def _numbers(report: Report, found: Medians) -> list[str]:
    lines = ["| measure | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    for measure, title in report.titles.items():
        cells = [_cell(_values(report, name, measure)) for name in found]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _ratios(report: Report, found: Medians) -> list[str]:
    """Return the table of what we come to over what others do; below 1 we take less."""
    if OURS not in found:
        return ["Ours was not measured."]
    others = [name for name in found if name != OURS]
    lines = [f"| {OURS} over | " + " | ".join(others) + " |", "|---" * (1 + len(others)) + "|"]
    for measure, title in report.titles.items():
        if measure in NO_RATIO:
            continue
        cells = [
            # What the node adds to itself is noise.
            "-"
            if name == DIRECT and "added" in measure
            else _ratio(found[OURS][measure], found[name][measure])
            for name in others
        ]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle = _number(statistics.median(values))
    low, high = _number(values[0]), _number(values[-1])
    return middle if low == high else f"{middle} ({low} to {high})"


def _ratio(ours: float | None, theirs: float | None) -> str:
    # A difference of two quantiles may be below nothing, and then is no measure for another.
    is_any = ours is not None and theirs is not None and ours > 0 and theirs > 0
    return f"{ours / theirs:.2f}" if is_any else "-"  # type: ignore[operator]


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _listed(entries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in entries.items())
