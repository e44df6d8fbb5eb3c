"""Simulations as one HTML page: who waited when, and who was where. No scripts, no other files."""

import html
import statistics
from collections.abc import Mapping, Sequence

from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.simulation.memory import Span
from cortex_core.simulation.run import Run

WIDTH = 1000
"""Of a drawing, in pixels."""

MARGIN = 130
"""Left of it, for names."""

BINS = 250
"""Stretches of time in which waits are put together."""

WAITS_HEIGHT = 140

LANE_HEIGHT = 14

_STYLE = """
body { font: 14px sans-serif; margin: 2em; color: #222; background: #fff; }
h2 { margin: 2em 0 0.3em; } h3 { font-weight: normal; margin: 1em 0 0.2em; }
svg { font: 11px sans-serif; } .worst { fill: #e8a87c; } .median { fill: #41658a; }
.axis { stroke: #999; } .unloading { opacity: 0.35; }
.loading, .reloading { opacity: 0.55; } .sleeping { opacity: 0.15; }
.key { display: inline-block; margin-right: 1em; } .key i { display: inline-block; width: 1em;
height: 1em; margin-right: 0.3em; vertical-align: middle; }
"""


def render_page(runs: Sequence[Run]) -> str:
    """Return the page of some runs of one trace."""
    end = max((_end(run) for run in runs), default=0.0) or 1.0
    models = sorted({span.model for run in runs for span in run.spans})
    hues = {model: round(number * 137.508) % 360 for number, model in enumerate(models)}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>cortex simulate</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>cortex simulate</h1>",
        f"<p>{end:.0f} seconds from left to right.</p>",
    ]
    for run in runs:
        parts.append(f"<h2>{html.escape(run.result.strategy)}</h2>")
        parts.append(f"<p>{_summary(run)}</p>")
        parts.append("<h3>Waits, by arrival: the longest behind, the median in front</h3>")
        parts.append(_waits(run, end))
        parts.append("<h3>Who was on which device; pale while it came or went</h3>")
        parts.append(_residency(run.spans, hues, end))
    parts.append(f"<p>{_key(hues)}</p></body></html>")
    return "\n".join(parts) + "\n"


def _end(run: Run) -> float:
    return max([run.result.ended_s, *(span.end for span in run.spans)])


def _summary(run: Run) -> str:
    result = run.result
    return (
        f"{result.requests} requests, {result.hit_ratio:.1%} of them hits; {result.swaps} swaps,"
        f" {result.loads} loads, {result.wakes} wakes; longest wait {result.longest_wait_s:.0f} s"
    )


def _waits(run: Run, end: float) -> str:
    bins: list[list[float]] = [[] for _ in range(BINS)]
    for one in run.waits:
        bins[min(int(one.at / end * BINS), BINS - 1)].append(one.wait_s)
    top = max((wait for one in bins for wait in one), default=0.0) or 1.0
    width = WIDTH / BINS
    bars = []
    for number, waits in enumerate(bins):
        if waits:
            x = MARGIN + number * width
            bars.append(_bar(x, width, max(waits) / top, "worst"))
            bars.append(_bar(x, width, statistics.median(waits) / top, "median"))
    axis = WAITS_HEIGHT + 0.5
    return (
        _svg(WAITS_HEIGHT + 4)
        + f'<text x="0" y="12">{top:.0f} s</text><text x="0" y="{WAITS_HEIGHT}">0 s</text>'
        + "".join(bars)
        + f'<line class="axis" x1="{MARGIN}" x2="{MARGIN + WIDTH}" y1="{axis}" y2="{axis}"/></svg>'
    )


def _bar(x: float, width: float, ratio: float, kind: str) -> str:
    height = ratio * WAITS_HEIGHT
    y = WAITS_HEIGHT - height
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def _residency(spans: Sequence[Span], hues: Mapping[ModelId, int], end: float) -> str:
    devices: dict[tuple[NodeName, DeviceIndex], list[Span]] = {}
    for span in spans:
        for device in span.devices:
            devices.setdefault((span.node, device), []).append(span)
    drawn: list[str] = []
    y = 0
    for (node, device), mine in sorted(devices.items()):
        lanes = _lanes(mine)
        drawn.append(f'<text x="0" y="{y + 11}">{html.escape(f"{node}/{device}")}</text>')
        for lane in lanes:
            drawn += [_rectangle(span, hues[span.model], y, end) for span in lane]
            y += LANE_HEIGHT
        line = f'y1="{y + 2}" y2="{y + 2}"'
        drawn.append(f'<line class="axis" x1="0" x2="{MARGIN + WIDTH}" {line}/>')
        y += 6
    return _svg(y) + "".join(drawn) + "</svg>"


def _lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Part the stays on a device into lines in which none lies over another."""
    stays: list[list[Span]] = []
    latest: dict[ModelId, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.begin, span.model)):
        before = latest.get(span.model)
        if before is not None and before[-1].end == span.begin:
            before.append(span)
        else:
            latest[span.model] = [span]
            stays.append(latest[span.model])
    lanes: list[list[Span]] = []
    for stay in stays:
        lane = next((lane for lane in lanes if lane[-1].end <= stay[0].begin), None)
        if lane is None:
            lanes.append(stay[:])
        else:
            lane += stay
    return lanes


def _rectangle(span: Span, hue: int, y: float, end: float) -> str:
    x = MARGIN + span.begin / end * WIDTH
    width = max(0.5, (span.end - span.begin) / end * WIDTH)
    told = f"{span.model}: {span.status}, {span.begin:.0f} s to {span.end:.0f} s"
    return (
        f'<rect class="{span.status}" x="{x:.1f}" y="{y}" width="{width:.1f}"'
        f' height="{LANE_HEIGHT - 2}" fill="hsl({hue} 55% 50%)">'
        f"<title>{html.escape(told)}</title></rect>"
    )


def _key(hues: Mapping[ModelId, int]) -> str:
    return "".join(
        f'<span class="key"><i style="background: hsl({hue} 55% 50%)"></i>'
        f"{html.escape(model)}</span>"
        for model, hue in hues.items()
    )


def _svg(height: float) -> str:
    size = f'width="{MARGIN + WIDTH}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
