"""`cortex explain`: what would become of a request for a model."""

import asyncio

import click
import msgspec

from cortex_cli.client import GatewayClient
from cortex_cli.context import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE, Surroundings
from cortex_cli.render import render_explanation
from cortex_core.codec import encode_json
from cortex_core.routing.explain import Explanation, Outcome


@click.command()
@click.argument("model")
@click.option(
    "--endpoint",
    metavar="URL",
    help=f"The gateway; else the variable {ENDPOINT_VARIABLE}, else {DEFAULT_ENDPOINT}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as the gateway gives it.")
@click.pass_context
def explain(context: click.Context, model: str, endpoint: str | None, as_json: bool) -> None:
    """Tell what would become of a request for MODEL now, node by node; nothing is done.

    Exit status 0 when it would be served, now or after a load, 1 when it would be refused or the
    gateway cannot be asked.
    """
    around = context.ensure_object(Surroundings)
    found = asyncio.run(
        _ask(endpoint or around.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT, model)
    )
    if as_json:
        click.echo(msgspec.json.format(encode_json(found), indent=2))
    else:
        # The colours were chosen with the stream in mind; click shall not take them out again.
        click.echo(render_explanation(found, around.style), nl=False, color=True)
    if found.outcome is Outcome.REFUSE:
        context.exit(1)


async def _ask(endpoint: str, model: str) -> Explanation:
    async with GatewayClient(endpoint) as client:
        return await client.explanation(model)
