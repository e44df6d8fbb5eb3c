"""The main numbers as bars, in SVG, which is text."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.peers.report import OURS, Medians

PANELS = (
    "added_1k_ms",
    "cpu_s_per_1000_calls",
    "cpu_s_per_1000_chunks_long",
    "open_1000_kib",
)

WIDTH, PANEL_WIDTH, ROW, LABEL, BAR = 920, 460, 20, 100, 280
"""Pixels: of all, of a panel, of a row in it, of its names, and of the longest bar."""

FONT = 'font-family="sans-serif" font-size="12"'


def svg(found: Medians, titles: Mapping[str, str]) -> str:
    """Return a picture: a panel for each main measure, two in a row, on logarithmic scales."""
    panels = [
        (titles[key], rows)
        for key in PANELS
        if (rows := [(name, value) for name in found if (value := found[name].get(key))])
    ]
    height = 36 + ROW * (1 + max((len(rows) for _, rows in panels), default=0))
    total = height * ((len(panels) + 1) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" {FONT}>',
        f'<rect width="{WIDTH}" height="{total}" fill="#ffffff"/>',
    ]
    for number, (title, rows) in enumerate(panels):
        x, y = PANEL_WIDTH * (number % 2), height * (number // 2)
        parts.append(f'<g transform="translate({x},{y})">{_panel(title, rows)}</g>')
    return "\n".join((*parts, "</svg>\n"))


def _panel(title: str, rows: Sequence[tuple[str, float]]) -> str:
    values = [value for _, value in rows if value > 0]
    # A decade of room below the least, lest its bar has no length.
    low = math.floor(math.log10(min(values, default=1.0)))
    high = max(low + 1, math.ceil(math.log10(max(values, default=1.0))))
    parts = [f'<text x="10" y="20" font-weight="bold">{escape(title)} (logarithmic)</text>']
    for power in range(low, high + 1):
        x = LABEL + BAR * (power - low) / (high - low)
        bottom = 34 + ROW * len(rows)
        parts.append(
            f'<path d="M{x:.0f} 30V{bottom}" stroke="#dddddd"/>'
            f'<text x="{x:.0f}" y="{bottom + 14}" text-anchor="middle" fill="#666666" '
            f'font-size="10">{10.0**power:g}</text>'
        )
    for number, (name, value) in enumerate(rows):
        y = 34 + ROW * number
        length = BAR * (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        color = "#0b6e99" if name.startswith(OURS) else "#9aa5ad"
        parts.append(
            f'<text x="{LABEL - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{ROW - 5}" fill="{color}"/>'
            f'<text x="{LABEL + length + 5:.1f}" y="{y + 12}">{value:.3g}</text>'
        )
    return "".join(parts)
