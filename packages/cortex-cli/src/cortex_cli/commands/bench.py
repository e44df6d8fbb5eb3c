"""`cortex bench`: a constant rate of requests, and what their callers see."""

import asyncio
import time
from collections.abc import Mapping

import click
import msgspec

from cortex_cli.bench.caller import Question, chat_caller, connected, lag_buckets
from cortex_cli.bench.lag import Buckets, lag_of, metrics_url, with_looks
from cortex_cli.bench.open_loop import open_loop
from cortex_cli.bench.samples import Sample, Summary, summarize
from cortex_cli.commands.options import endpoint_option, gateway_of, show
from cortex_cli.context import ConfigurationError, FleetError, Surroundings
from cortex_cli.render.bench import render_bench


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How the load is put on."""

    rate_per_s: float
    duration_s: float
    """Of each server, over all rounds."""
    rounds: int
    patience_s: float
    metrics_url: str | None
    """Where the first server may show how late its event loop is."""


@click.command()
@click.argument("model")
@click.option("--rate", default=5.0, show_default=True, help="Requests a second, evenly spaced.")
@click.option("--duration", default=30.0, show_default=True, help="Seconds in which they are sent.")
@click.option("--no-stream", is_flag=True, help="Ask for whole answers instead of streams.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of each answer."
)
@click.option(
    "--prompt-bytes", type=click.IntRange(1), default=500, show_default=True, help="Of each prompt."
)
@click.option(
    "--against",
    metavar="URL",
    multiple=True,
    help="Compare with this server, in turns; may be repeated.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Turns of each server, where there are several.",
)
@click.option(
    "--patience", default=600.0, show_default=True, help="Seconds until an answer is given up."
)
@click.option(
    "--metrics", metavar="URL",
    help="Where the gateway shows its metrics; else at the port after its own.",
)  # fmt: skip
@endpoint_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def bench(
    context: click.Context,
    model: str,
    rate: float,
    duration: float,
    no_stream: bool,
    max_tokens: int,
    prompt_bytes: int,
    against: tuple[str, ...],
    rounds: int,
    patience: float,
    metrics: str | None,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Ask MODEL at a constant rate, and show what callers saw.

    Requests are sent when they are due, whatever becomes of those before, and their times run
    from then. Exit status 1 when a request did not end well.
    """
    around = context.ensure_object(Surroundings)
    for name, value in (("--rate", rate), ("--duration", duration), ("--patience", patience)):
        if not 0 < value < 1e6:
            raise ConfigurationError(f"{name} {value:g} is not above 0")
    servers = list(dict.fromkeys((gateway_of(context, endpoint), *against)))
    plan = Plan(
        rate_per_s=rate,
        duration_s=duration,
        rounds=rounds if len(servers) > 1 else 1,
        patience_s=patience,
        metrics_url=metrics_url(servers[0], metrics),
    )
    question = Question(
        model=model, prompt_bytes=prompt_bytes, max_tokens=max_tokens, is_stream=not no_stream
    )
    found = asyncio.run(_measured(servers, question, plan))
    show(found, render_bench(found, around.style), as_json=as_json)
    bad = sum(one.requests - one.outcomes.get("ok", 0) for one in found.values())
    if bad:
        raise FleetError(f"{bad} requests did not end well")


async def _measured(servers: list[str], question: Question, plan: Plan) -> Mapping[str, Summary]:
    """Put the load on each server in turns, so that what else the machine does hits all alike."""
    samples: dict[str, list[Sample]] = {server: [] for server in servers}
    walls = dict.fromkeys(servers, 0.0)
    looks: Buckets | None = {}
    async with connected() as session:
        for _ in range(plan.rounds):
            for server in servers:
                url = plan.metrics_url if server == servers[0] else None
                before = await lag_buckets(session, url)
                call = chat_caller(session, server, question, plan.patience_s)
                began = time.perf_counter()
                samples[server] += await open_loop(
                    call, plan.rate_per_s, plan.duration_s / plan.rounds
                )
                walls[server] += time.perf_counter() - began
                if server == servers[0]:
                    looks = _added(looks, before, await lag_buckets(session, url))
    found = {
        server: summarize(samples[server], plan.rate_per_s, walls[server]) for server in servers
    }
    lag = None if looks is None else lag_of(looks)
    return found | {servers[0]: msgspec.structs.replace(found[servers[0]], lag=lag)}


def _added(looks: Buckets | None, before: Buckets | None, after: Buckets | None) -> Buckets | None:
    """Return looks with those of another turn; not known once those of one turn are not."""
    if looks is None or before is None or after is None:
        return None
    return with_looks(looks, before, after)
