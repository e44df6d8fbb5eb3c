"""What the rounds come to: medians, and ratios to the lightest, to one another, to us."""

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.peers.rounds import Round

MEASURES = {
    "added_p50_ms": "added p50, ms",
    "added_big_p50_ms": "added p50 of 1 MiB, ms",
    "due_p50_ms": "p50 at a constant rate, ms",
    "due_p99_ms": "p99, ms",
    "due_p999_ms": "p99.9, ms",
    "calls_per_s": "calls a second, 32 callers",
    "cpu_s_per_1000_calls": "CPU s per 1000 calls",
    "cpu_s_per_1000_chunks": "CPU s per 1000 chunks",
    "chunks_per_s": "chunks a second",
    "gap_p99_ms": "gap p99, ms",
    "idle_mib": "idle, MiB",
    "stream_kib": "per open stream, KiB",
}

OURS = "cortex"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run measured."""

    date: str
    machine: str
    versions: Mapping[str, str]
    left_out: Mapping[str, str]
    """Why some were not measured, by name."""
    rounds: tuple[Round, ...]


def medians(rounds: Sequence[Round]) -> dict[str, dict[str, float | None]]:
    """Return the median of every measure, by gateway, in the order of the first round."""
    names = list(dict.fromkeys(one.name for one in rounds))
    return {
        name: {measure: _median(rounds, name, measure) for measure in MEASURES} for name in names
    }


def _median(rounds: Sequence[Round], name: str, measure: str) -> float | None:
    values = _values(rounds, name, measure)
    return statistics.median(values) if values else None


def _values(rounds: Sequence[Round], name: str, measure: str) -> list[float]:
    found = (getattr(one, measure) for one in rounds if one.name == name)
    return sorted(value for value in found if value is not None)


def page(report: Report) -> str:
    """Return the report as a page in Markdown."""
    found = medians(report.rounds)
    lines = [
        f"# Gateways side by side, {report.date}",
        "",
        f"{report.machine}. Medians of {len(report.rounds) // max(1, len(found))} interleaved "
        "rounds; lowest and highest in brackets. Written by `python -m benchmarks.peers`.",
        "",
        "| measure | " + " | ".join(found) + " |",
        "|---" * (1 + len(found)) + "|",
    ]
    for measure, title in MEASURES.items():
        cells = [_cell(_values(report.rounds, name, measure)) for name in found]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", *_ratios(found), "", "Versions: " + _listed(report.versions) + "."]
    if report.left_out:
        lines += ["", "Left out: " + _listed(report.left_out) + "."]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = _number(values[0]), _number(values[-1])
    return f"{_number(statistics.median(values))} ({low} to {high})"


def _ratios(found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Return the table of what we come to over what others do; below 1 we take less."""
    if OURS not in found:
        return []
    others = [name for name in found if name != OURS]
    lines = [f"| {OURS} over | " + " | ".join(others) + " |", "|---" * (1 + len(others)) + "|"]
    for measure, title in MEASURES.items():
        cells = [_ratio(found[OURS][measure], found[name][measure]) for name in others]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours is not None and theirs and theirs > 0 else "-"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _listed(entries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in entries.items())
