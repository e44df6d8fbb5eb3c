"""`cortex simulate`: a trace through a fleet that does not exist, on virtual time."""

import pathlib
import random
from collections.abc import Sequence

import click
import msgspec

from cortex_cli.context import ConfigurationError, Style, Surroundings
from cortex_cli.render.text import table
from cortex_core.catalogue import Catalogue, load_catalogue
from cortex_core.codec import encode_json
from cortex_core.config import load_toml, to_settings
from cortex_core.placement.policy import Strategy
from cortex_core.simulation.generate import PATTERNS, TraceFile, generate, ordinary
from cortex_core.simulation.machines import check_sizes, load_fleet
from cortex_core.simulation.optimum import Optimum, find_optimum
from cortex_core.simulation.plot import render_page
from cortex_core.simulation.run import Result, simulate as run_trace
from cortex_core.simulation.trace import Arrival, line_of, read_trace

SHOWN_CALLERS = 20
"""Callers that the table has; those who waited for longest."""

_NOTHING = "-"

FilePath = click.Path(dir_okay=False, path_type=pathlib.Path)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    seed: int
    results: tuple[Result, ...]
    """One for each strategy."""
    optimum: Optimum


@click.command()
@click.option("--fleet", "fleet_file", type=FilePath, required=True, help="The machines.")
@click.option("--models", "models_file", type=FilePath, required=True, help="The catalogue.")
@click.option("--trace", type=FilePath, help="Who asks: a trace (.jsonl) or a definition (.toml).")
@click.option(
    "--generate",
    "pattern",
    type=click.Choice(PATTERNS),
    help="Who asks, instead of --trace: an hour of this pattern.",
)
@click.option("--per-second", default=1.0, help="Requests per second that --generate makes.")
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice([strategy.value for strategy in Strategy]),
    multiple=True,
    help="Who gives way first; may be repeated. Without it, what the fleet's file says.",
)
@click.option("--seed", default=0, help="Another seed draws other numbers.")
@click.option("--save-trace", type=FilePath, help="Write the trace to this file as well.")
@click.option("--plot", type=FilePath, help="Write a page with drawings to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def simulate(
    context: click.Context,
    fleet_file: pathlib.Path,
    models_file: pathlib.Path,
    trace: pathlib.Path | None,
    pattern: str | None,
    per_second: float,
    strategies: Sequence[str],
    seed: int,
    save_trace: pathlib.Path | None,
    plot: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Run a trace through a fleet that does not exist, with the gateway's own decisions.

    Prints one line for each strategy, and how far it is from what somebody could do who knew the
    trace. Exit status 1 when a request was lost, which would be a bug.
    """
    fleet, catalogue = load_fleet(fleet_file), load_catalogue(models_file)
    check_sizes(catalogue, str(models_file))
    arrivals = _arrivals(trace, pattern, per_second, catalogue, seed)
    if save_trace is not None:
        _write(save_trace, b"".join(line_of(one) for one in arrivals))
    runs = [
        run_trace(fleet, catalogue, arrivals, _dice(seed), strategy)
        for strategy in _chosen(strategies)
    ]
    if plot is not None:
        _write(plot, render_page(runs).encode())
    results = tuple(run.result for run in runs)
    report = Report(seed=seed, results=results, optimum=find_optimum(fleet, catalogue, arrivals))
    if as_json:
        click.echo(msgspec.json.format(encode_json(report), indent=2))
    else:
        click.echo(render_report(report, context.ensure_object(Surroundings).style), nl=False)
    if any(result.lost for result in results):
        context.exit(1)


def render_report(report: Report, style: Style) -> str:
    """Return the tables, lines that end in a newline."""
    optimum = report.optimum
    known = (("optimum", optimum.hit_ratio), ("bound", optimum.bound_ratio))
    rows = [_row(result, optimum) for result in report.results]
    rows += [(name, _NOTHING, _NOTHING, f"{ratio:.1%}", *[_NOTHING] * 10) for name, ratio in known]
    header = (
        "STRATEGY", "SERVED", "REFUSED", "HITS", "GAP", "P50", "P95", "P99", "WORST WAIT",
        "SWAPS", "LOADS", "WAKES", "LOADING", "DRAINING",
    )  # fmt: skip
    lines = [*table(header, rows, style), "", *_caller_table(report.results, style)]
    for result in report.results:
        told = ", ".join(f"{count} x {code}" for code, count in result.refused.items())
        if told:
            lines.append(f"{result.strategy} refused {told}")
        if result.starved:
            lines.append(f"{result.strategy} let {result.starved} caller(s) wait beyond the bound")
    return "\n".join(lines) + "\n"


def _row(result: Result, optimum: Optimum) -> tuple[str, ...]:
    return (
        result.strategy,
        str(result.served),
        str(sum(result.refused.values())),
        f"{result.hit_ratio:.1%}",
        f"{optimum.hit_ratio - result.hit_ratio:.1%}",
        _seconds(result.ttft_p50_s),
        _seconds(result.ttft_p95_s),
        _seconds(result.ttft_p99_s),
        _seconds(result.longest_wait_s),
        str(result.swaps),
        str(result.loads),
        str(result.wakes),
        _seconds(result.load_device_s),
        _seconds(result.drain_device_s),
    )


def _caller_table(results: Sequence[Result], style: Style) -> list[str]:
    """Return each caller's worst wait with each strategy, the longest first."""
    waits: dict[str, dict[str, float]] = {}
    for result in results:
        for one in result.callers:
            waits.setdefault(one.caller, {})[result.strategy] = one.longest_wait_s
    worst = sorted(waits, key=lambda caller: (-max(waits[caller].values()), caller))
    rows = [
        (_clean(caller), *(_seconds(waits[caller].get(result.strategy)) for result in results))
        for caller in worst[:SHOWN_CALLERS]
    ]
    return table(("WORST WAIT OF", *(result.strategy.upper() for result in results)), rows, style)


def _clean(caller: str) -> str:
    # Names come from a file that anybody may have written; the terminal obeys nothing in them.
    return "".join(character if character.isprintable() else "?" for character in caller)


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _chosen(strategies: Sequence[str]) -> Sequence[Strategy | None]:
    return [Strategy(name) for name in dict.fromkeys(strategies)] or [None]


def _arrivals(
    trace: pathlib.Path | None,
    pattern: str | None,
    per_second: float,
    catalogue: Catalogue,
    seed: int,
) -> tuple[Arrival, ...]:
    if (trace is None) == (pattern is None):
        raise ConfigurationError("say who asks: with --trace or with --generate, not with both")
    if trace is not None and trace.suffix != ".toml":
        try:
            return read_trace(trace.read_bytes().splitlines(), str(trace))
        except OSError as error:
            raise ConfigurationError(f"{trace}: cannot be read: {error.strerror}") from None
    if trace is not None:
        file = to_settings(load_toml(trace), TraceFile, str(trace))
    else:
        assert pattern is not None
        file = ordinary(pattern, per_second)
    return generate(file, tuple(catalogue.profiles), _dice(seed))


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - numbers for a simulation, no secrets


def _write(path: pathlib.Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from None
