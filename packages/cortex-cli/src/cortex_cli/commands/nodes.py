"""`cortex nodes`: the machines, and taking them out of use and back."""

import asyncio

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import (
    dry_run_option,
    endpoint_option,
    gateway_of,
    json_option,
    show,
)
from cortex_cli.context import Surroundings
from cortex_cli.render.answers import render_cordon, render_drain, render_nodes
from cortex_core.fleet.overview import FleetOverview
from cortex_core.wire.admin import CordonAnswer, DrainAnswer


@click.group(invoke_without_command=True)
@endpoint_option
@json_option
@click.pass_context
def nodes(context: click.Context, endpoint: str | None, as_json: bool) -> None:
    """Show the nodes, or take one out of use and back.

    Exit status 0 when the gateway answers, whatever the nodes' health.
    """
    if context.invoked_subcommand is not None:
        return
    around = context.ensure_object(Surroundings)
    found = asyncio.run(_overview(gateway_of(context, endpoint)))
    show(found.nodes, render_nodes(found.nodes, around.style), as_json=as_json)


@nodes.command()
@click.argument("name")
@dry_run_option
@endpoint_option
@json_option
@click.pass_context
def cordon(
    context: click.Context, name: str, dry_run: bool, endpoint: str | None, as_json: bool
) -> None:
    """Have nothing new loaded on node NAME; what is there serves on."""
    _mark(context, name, endpoint, is_cordoned=True, dry_run=dry_run, as_json=as_json)


@nodes.command()
@click.argument("name")
@dry_run_option
@endpoint_option
@json_option
@click.pass_context
def uncordon(
    context: click.Context, name: str, dry_run: bool, endpoint: str | None, as_json: bool
) -> None:
    """Have models loaded on node NAME again."""
    _mark(context, name, endpoint, is_cordoned=False, dry_run=dry_run, as_json=as_json)


@nodes.command()
@click.argument("name")
@dry_run_option
@endpoint_option
@json_option
@click.pass_context
def drain(
    context: click.Context, name: str, dry_run: bool, endpoint: str | None, as_json: bool
) -> None:
    """Cordon node NAME and empty it; what is in use is loaded elsewhere first.

    Returns when everything has left that can. Exit status 1 when a model stays.
    """
    around = context.ensure_object(Surroundings)
    answer = asyncio.run(_drain(gateway_of(context, endpoint), name, dry_run=dry_run))
    show(answer, render_drain(answer, around.style), as_json=as_json)
    if not answer.drained:
        context.exit(1)


def _mark(
    context: click.Context,
    name: str,
    endpoint: str | None,
    *,
    is_cordoned: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    around = context.ensure_object(Surroundings)
    answer = asyncio.run(
        _cordon(gateway_of(context, endpoint), name, is_cordoned=is_cordoned, dry_run=dry_run)
    )
    show(answer, render_cordon(answer, around.style), as_json=as_json)


async def _overview(endpoint: str) -> FleetOverview:
    async with GatewayClient(endpoint) as client:
        return await client.overview()


async def _cordon(endpoint: str, name: str, *, is_cordoned: bool, dry_run: bool) -> CordonAnswer:
    async with GatewayClient(endpoint) as client:
        return await client.cordon(name, is_cordoned=is_cordoned, dry_run=dry_run)


async def _drain(endpoint: str, name: str, *, dry_run: bool) -> DrainAnswer:
    async with GatewayClient(endpoint) as client:
        return await client.drain(name, dry_run=dry_run)
