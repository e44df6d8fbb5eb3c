"""`cortex decisions`: what the gateway decided lately, and why."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import endpoint_option, gateway_of, json_option, show
from cortex_cli.context import Surroundings
from cortex_cli.render.decisions import render_decisions
from cortex_core.routing.record import DecisionsAnswer


@click.command()
@click.option("--request", "request_id", metavar="ID", help="Those about one request.")
@click.option("--model", metavar="MODEL", help="Those about one model, or for which it gave way.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="At most so many, the newest.",
)
@endpoint_option
@json_option
@click.pass_context
def decisions(
    context: click.Context,
    request_id: str | None,
    model: str | None,
    limit: int,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Show what was decided about requests and models, with the reasons, the newest last."""
    around = context.ensure_object(Surroundings)
    query = {"limit": str(limit), "request": request_id, "model": model}
    found = asyncio.run(_decisions(gateway_of(context, endpoint), query))
    show(found, render_decisions(found.decisions, around.style), as_json=as_json)


async def _decisions(endpoint: str, query: dict[str, str | None]) -> DecisionsAnswer:
    async with GatewayClient(endpoint) as client:
        return await client.decisions({k: v for k, v in query.items() if v is not None})
