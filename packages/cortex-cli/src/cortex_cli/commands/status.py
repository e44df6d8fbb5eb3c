"""`cortex status`: nodes, devices, models and where they are."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import endpoint_option, gateway_of, json_option, show
from cortex_cli.context import Surroundings
from cortex_cli.render.fleet import render_fleet
from cortex_core.fleet.overview import FleetOverview


@click.command()
@endpoint_option
@json_option
@click.pass_context
def status(context: click.Context, endpoint: str | None, as_json: bool) -> None:
    """Show nodes, devices with their memory, and models with where they are.

    Exit status 0 when every node is up, 1 when the fleet is degraded or cannot be asked.
    """
    around = context.ensure_object(Surroundings)
    overview = asyncio.run(_ask(gateway_of(context, endpoint)))
    show(overview, render_fleet(overview, around.style), as_json=as_json)
    if overview.is_degraded:
        context.exit(1)


async def _ask(endpoint: str) -> FleetOverview:
    async with GatewayClient(endpoint) as client:
        return await client.overview()
