"""Options that many commands have, and how their answers are shown."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from cortex_cli.context import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE, Surroundings
from cortex_core.codec import encode_json

F = TypeVar("F", bound=Callable[..., Any])


def endpoint_option(command: F) -> F:
    """Add `--endpoint`."""
    return click.option(
        "--endpoint",
        metavar="URL",
        help=f"The gateway; else the variable {ENDPOINT_VARIABLE}, else {DEFAULT_ENDPOINT}.",
    )(command)


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, as the gateway gives it."
    )(command)


def dry_run_option(command: F) -> F:
    """Add `--dry-run`."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(
        command
    )


def node_option(command: F) -> F:
    """Add `--node`."""
    return click.option(
        "--node", metavar="NAME", help="The node, where more than one is possible."
    )(command)


def gateway_of(context: click.Context, endpoint: str | None) -> str:
    """Return the URL of the gateway that is meant."""
    around = context.ensure_object(Surroundings)
    return endpoint or around.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT


def show(value: object, text: str, *, as_json: bool) -> None:
    """Print an answer, as JSON or as `text`, which ends in a newline."""
    if as_json:
        click.echo(msgspec.json.format(encode_json(value), indent=2))
    else:
        # The colours were chosen with the stream in mind; click shall not take them out again.
        click.echo(text, nl=False, color=True)
