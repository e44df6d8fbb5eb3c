"""`cortex unload`, `sleep`, `wake`, `pin` and `unpin`: where a model is, and in which tier."""

import asyncio
from typing import Literal

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
from cortex_cli.context import Surroundings
from cortex_cli.render.answers import render_model_answer
from cortex_core.ids import NodeName
from cortex_core.wire.admin import Action, ModelAnswer, ModelCommand

_TEXTS = {
    Action.UNLOAD: """Unload MODEL, on every node that has it or on one.

    Its requests end first. It comes back when somebody asks for it.""",
    Action.WAKE: "Wake MODEL, on every node where it sleeps or on one.",
    Action.PIN: """Keep MODEL where it is: nothing makes it give way there any more.

    With --node, also before it is loaded there.""",
    Action.UNPIN: "Let MODEL give way to others again.",
}


def _command_of(action: Action) -> click.Command:
    """Return the command that does `action` to a model."""

    @click.command(action.value, help=_TEXTS[action])
    @click.argument("model")
    @node_option
    @dry_run_option
    @endpoint_option
    @json_option
    @click.pass_context
    def command(
        context: click.Context,
        model: str,
        node: str | None,
        dry_run: bool,
        endpoint: str | None,
        as_json: bool,
    ) -> None:
        _perform(context, action, model, _asked(node, dry_run=dry_run), endpoint, as_json=as_json)

    return command


unload = _command_of(Action.UNLOAD)
wake = _command_of(Action.WAKE)
pin = _command_of(Action.PIN)
unpin = _command_of(Action.UNPIN)


@click.command()
@click.argument("model")
@node_option
@click.option(
    "--level",
    type=click.Choice(["1", "2"]),
    default="1",
    help="1 keeps the weights in host memory, 2 drops them.",
)
@dry_run_option
@endpoint_option
@json_option
@click.pass_context
def sleep(
    context: click.Context,
    model: str,
    node: str | None,
    level: str,
    dry_run: bool,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Put MODEL to sleep, on every node that has it or on one; its requests end first."""
    asked = _asked(node, dry_run=dry_run, level=2 if level == "2" else 1)
    _perform(context, Action.SLEEP, model, asked, endpoint, as_json=as_json)


def _asked(node: str | None, *, dry_run: bool, level: Literal[1, 2] = 1) -> ModelCommand:
    where = None if node is None else NodeName(node)
    return ModelCommand(node=where, level=level, dry_run=dry_run)


def _perform(
    context: click.Context,
    action: Action,
    model: str,
    asked: ModelCommand,
    endpoint: str | None,
    *,
    as_json: bool,
) -> None:
    around = context.ensure_object(Surroundings)
    answer = asyncio.run(_send(gateway_of(context, endpoint), action, model, asked))
    show(answer, render_model_answer(answer, around.style), as_json=as_json)


async def _send(endpoint: str, action: Action, model: str, asked: ModelCommand) -> ModelAnswer:
    async with GatewayClient(endpoint) as client:
        return await client.perform(action, model, asked)
