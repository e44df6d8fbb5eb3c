"""`cortex weights`: what is on the disks of nodes, bring, remove."""

import asyncio

import click

from cortex_cli.client import GatewayClient, RefusedError
from cortex_cli.commands.options import (
    endpoint_option,
    gateway_of,
    json_option,
    node_option,
    show,
)
from cortex_cli.commands.progress import Progress
from cortex_cli.context import FleetError, Surroundings
from cortex_cli.render.weights import NodeWeights, render_news, render_weights
from cortex_core.ids import ModelId, NodeName
from cortex_core.wire.admin import LoadNews
from cortex_core.wire.weights import PullCommand, WeightsNews

_TAKES_NO_COMMANDS = 409
"""Status of a gateway's refusal to command an upstream."""

_the_node = click.option("--node", metavar="NAME", required=True, help="The node.")


@click.group()
def weights() -> None:
    """Show the weights on the nodes' disks, bring them and remove them."""


@weights.command(name="ls")
@node_option
@endpoint_option
@json_option
@click.pass_context
def ls(context: click.Context, node: str | None, endpoint: str | None, as_json: bool) -> None:
    """Show what is on the disks of all nodes, or of one, and on its way there.

    Exit status 1 when a node that is meant cannot be asked.
    """
    around = context.ensure_object(Surroundings)
    found = asyncio.run(_list(gateway_of(context, endpoint), node))
    show(found, render_weights(found, around.style), as_json=as_json)
    if any(one.weights is None for one in found):
        context.exit(1)


@weights.command()
@click.argument("model")
@_the_node
@click.option("--revision", default="main", metavar="NAME", help="Branch, tag or commit.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the download was asked for.")
@endpoint_option
@json_option
@click.pass_context
def pull(
    context: click.Context,
    model: str,
    node: str,
    revision: str,
    no_wait: bool,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Download MODEL to a node, and return when it is there.

    Interrupting this does not end the download; `cortex weights rm` does. Exit status 1 when it
    is not downloaded.
    """
    around = context.ensure_object(Surroundings)
    command = PullCommand(model=model, revision=revision, wait=not no_wait)
    progress = Progress(dict(around.environ), is_quiet=as_json)
    news = asyncio.run(_pull(gateway_of(context, endpoint), node, command, progress))
    show(news, render_news(news, node, around.style), as_json=as_json)


@weights.command()
@click.argument("model")
@_the_node
@endpoint_option
@json_option
@click.pass_context
def rm(context: click.Context, model: str, node: str, endpoint: str | None, as_json: bool) -> None:
    """Remove MODEL with all its revisions from a node's disk; a download of it ends.

    Exit status 1 when it stays, because it is loaded or pinned.
    """
    around = context.ensure_object(Surroundings)
    news = asyncio.run(_remove(gateway_of(context, endpoint), node, model))
    show(news, render_news(news, node, around.style), as_json=as_json)


async def _list(endpoint: str, node: str | None) -> tuple[NodeWeights, ...]:
    async with GatewayClient(endpoint) as client:
        if node is not None:
            return (NodeWeights(node=NodeName(node), weights=await client.weights(node)),)
        nodes = [one.name for one in (await client.overview()).nodes]
        found = await asyncio.gather(*(_of(client, name) for name in nodes))
        return tuple(one for one in found if one is not None)


async def _of(client: GatewayClient, node: NodeName) -> NodeWeights | None:
    """Return what is on the disk of a node; `None` when it is an upstream, which has none."""
    try:
        return NodeWeights(node=node, weights=await client.weights(node))
    except FleetError as error:
        if isinstance(error, RefusedError) and error.status == _TAKES_NO_COMMANDS:
            return None
        return NodeWeights(node=node, error=error.message)


async def _pull(endpoint: str, node: str, command: PullCommand, progress: Progress) -> WeightsNews:
    last: WeightsNews | None = None
    async with GatewayClient(endpoint) as client:
        with progress:
            async for news in client.pull(node, command):
                last = news
                progress.show(_shown(news, node))
    if last is None:
        raise FleetError(f"{endpoint}: the answer ended before the download did")
    return last


async def _remove(endpoint: str, node: str, model: str) -> WeightsNews:
    async with GatewayClient(endpoint) as client:
        return await client.remove(node, model)


def _shown(news: WeightsNews, node: str) -> LoadNews:
    """Return how far a download is in the form in which loads are shown."""
    return LoadNews(
        model=ModelId(news.id),
        node=NodeName(node),
        stage=news.status,
        done_bytes=news.done_bytes,
        total_bytes=news.total_bytes,
        bytes_per_s=news.bytes_per_s,
        eta_s=news.eta_s,
    )
