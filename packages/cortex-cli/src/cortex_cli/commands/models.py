"""`cortex models`: every model, how quickly it would answer, and where it is."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import endpoint_option, gateway_of, json_option, show
from cortex_cli.context import Surroundings
from cortex_cli.render.models import model_rows, render_models
from cortex_core.fleet.overview import FleetOverview


@click.command()
@endpoint_option
@json_option
@click.pass_context
def models(context: click.Context, endpoint: str | None, as_json: bool) -> None:
    """Show every model of the catalogue and of the nodes, with its tier, size and places."""
    around = context.ensure_object(Surroundings)
    rows = model_rows(asyncio.run(_overview(gateway_of(context, endpoint))))
    show(rows, render_models(rows, around.style), as_json=as_json)


async def _overview(endpoint: str) -> FleetOverview:
    async with GatewayClient(endpoint) as client:
        return await client.overview()
