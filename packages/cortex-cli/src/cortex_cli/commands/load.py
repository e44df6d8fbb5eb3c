"""`cortex load`: have a model loaded, and watch it."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import (
    dry_run_option,
    endpoint_option,
    gateway_of,
    json_option,
    node_option,
    show,
)
from cortex_cli.commands.progress import Progress
from cortex_cli.context import FleetError, Surroundings
from cortex_cli.render.answers import render_model_answer
from cortex_core.ids import NodeName
from cortex_core.routing.explain import Outcome
from cortex_core.wire.admin import Action, ModelAnswer, ModelCommand


@click.command()
@click.argument("model")
@node_option
@click.option("--no-wait", is_flag=True, help="Return as soon as the load was asked for.")
@dry_run_option
@endpoint_option
@json_option
@click.pass_context
def load(
    context: click.Context,
    model: str,
    node: str | None,
    no_wait: bool,
    dry_run: bool,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Load MODEL where a request would have it, or on a node; returns when it serves.

    Interrupting this does not end the load. Exit status 1 when it is not loaded, in a dry run
    when it would be refused.
    """
    around = context.ensure_object(Surroundings)
    command = ModelCommand(
        node=None if node is None else NodeName(node), dry_run=dry_run, wait=not no_wait
    )
    progress = Progress(dict(around.environ), is_quiet=as_json)
    answer = asyncio.run(_load(gateway_of(context, endpoint), model, command, progress))
    show(answer, render_model_answer(answer, around.style), as_json=as_json)
    if any(one.status == Outcome.REFUSE for one in answer.nodes):
        context.exit(1)


async def _load(
    endpoint: str, model: str, command: ModelCommand, progress: Progress
) -> ModelAnswer:
    async with GatewayClient(endpoint) as client:
        if command.dry_run or not command.wait:
            return await client.perform(Action.LOAD, model, command)
        with progress:
            async for item in client.load(model, command):
                if isinstance(item, ModelAnswer):
                    return item
                progress.show(item)
    raise FleetError(f"{endpoint}: the answer ended before the load did")
