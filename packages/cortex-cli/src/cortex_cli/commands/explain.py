"""`cortex explain`: what would become of a request for a model."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import endpoint_option, gateway_of, json_option, show
from cortex_cli.context import Surroundings
from cortex_cli.render.answers import render_explanation
from cortex_core.routing.explain import Explanation, Outcome


@click.command()
@click.argument("model")
@endpoint_option
@json_option
@click.pass_context
def explain(context: click.Context, model: str, endpoint: str | None, as_json: bool) -> None:
    """Tell what would become of a request for MODEL now, node by node; nothing is done.

    Exit status 0 when it would be served, now or after a load, 1 when it would be refused or the
    gateway cannot be asked.
    """
    around = context.ensure_object(Surroundings)
    found = asyncio.run(_ask(gateway_of(context, endpoint), model))
    show(found, render_explanation(found, around.style), as_json=as_json)
    if found.outcome is Outcome.REFUSE:
        context.exit(1)


async def _ask(endpoint: str, model: str) -> Explanation:
    async with GatewayClient(endpoint) as client:
        return await client.explanation(model)
