"""`cortex fit`: whether a model would load, node by node."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import (
    endpoint_option,
    gateway_of,
    json_option,
    node_option,
    show,
)
from cortex_cli.context import Surroundings
from cortex_cli.render.fit import render_fit
from cortex_core.ids import NodeName
from cortex_core.wire.fit import FitCommand, FleetFit


@click.command()
@click.argument("model")
@node_option
@endpoint_option
@json_option
@click.pass_context
def fit(
    context: click.Context, model: str, node: str | None, endpoint: str | None, as_json: bool
) -> None:
    """Tell whether MODEL would load, on each node; nothing is done.

    MODEL need not be in the catalogue. Exit status 0 when it would load now on a node at least,
    1 when on none or the gateway cannot be asked.
    """
    around = context.ensure_object(Surroundings)
    command = FitCommand(node=None if node is None else NodeName(node))
    found = asyncio.run(_ask(gateway_of(context, endpoint), model, command))
    show(found, render_fit(found, around.style), as_json=as_json)
    if not found.ok:
        context.exit(1)


async def _ask(endpoint: str, model: str, command: FitCommand) -> FleetFit:
    async with GatewayClient(endpoint) as client:
        return await client.fit(model, command)
