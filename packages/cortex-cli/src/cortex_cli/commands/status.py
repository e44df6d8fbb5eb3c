"""`cortex status`: nodes, devices, models and where they are."""

import asyncio

import click
import msgspec

from cortex_cli.client import GatewayClient
from cortex_cli.context import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE, Surroundings
from cortex_cli.render import render_fleet
from cortex_core.codec import encode_json
from cortex_core.fleet.overview import FleetOverview


@click.command()
@click.option(
    "--endpoint",
    metavar="URL",
    help=f"The gateway; else the variable {ENDPOINT_VARIABLE}, else {DEFAULT_ENDPOINT}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as the gateway gives it.")
@click.pass_context
def status(context: click.Context, endpoint: str | None, as_json: bool) -> None:
    """Show nodes, devices with their memory, and models with where they are.

    Exit status 0 when every node is up, 1 when the fleet is degraded or cannot be asked.
    """
    around = context.ensure_object(Surroundings)
    overview = asyncio.run(
        _ask(endpoint or around.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT)
    )
    if as_json:
        click.echo(msgspec.json.format(encode_json(overview), indent=2))
    else:
        # The colours were chosen with the stream in mind; click shall not take them out again.
        click.echo(render_fleet(overview, around.style), nl=False, color=True)
    if overview.is_degraded:
        context.exit(1)


async def _ask(endpoint: str) -> FleetOverview:
    async with GatewayClient(endpoint) as client:
        return await client.overview()
