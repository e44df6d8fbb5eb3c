"""The command `cortex`: dispatch, and the one place where errors become lines and statuses."""

import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

import click

from cortex_cli.commands.bench import bench
from cortex_cli.commands.config import config
from cortex_cli.commands.decisions import decisions
from cortex_cli.commands.explain import explain
from cortex_cli.commands.fit import fit
from cortex_cli.commands.load import load
from cortex_cli.commands.models import models
from cortex_cli.commands.nodes import nodes
from cortex_cli.commands.residency import pin, sleep, unload, unpin, wake
from cortex_cli.commands.simulate import simulate
from cortex_cli.commands.status import status
from cortex_cli.commands.up.command import up
from cortex_cli.commands.weights import weights
from cortex_cli.context import surroundings
from cortex_core.errors import CortexError, SettingsError

GROUP = "cortex.commands"
"""Entry points `NAME = function`; a function takes the arguments after the name and returns the
exit status. They are imported only when they are called."""

PROVIDERS: Mapping[str, str] = {"serve": "cortex-gateway"}
"""Commands that other distributions bring, for a better answer than "no such command"."""

FINE, BAD, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses; 130 is what shells give a command that Ctrl-C ended (128 + SIGINT)."""


class PassThrough(click.Command):
    """A command of another distribution; it gets its arguments as they were written."""

    def __init__(self, entry: importlib.metadata.EntryPoint) -> None:
        origin = entry.dist.name if entry.dist is not None else entry.module
        super().__init__(entry.name, help=f"(from {origin})", add_help_option=False)
        self._entry = entry

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep everything, options included, for the command itself."""
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: click.Context) -> None:
        """Import the command, run it, and end with its status."""
        run: Callable[[Sequence[str]], int | None] = self._entry.load()
        ctx.exit(run(ctx.args) or FINE)


class CommandGroup(click.Group):
    """Our own commands and those that installed distributions bring."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        brought = {entry.name for entry in importlib.metadata.entry_points(group=GROUP)}
        return sorted(brought | set(super().list_commands(ctx)))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return our own command first, so that nobody replaces it."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in importlib.metadata.entry_points(group=GROUP, name=cmd_name):
            return PassThrough(entry)
        if cmd_name in PROVIDERS:
            raise click.UsageError(
                f"{cmd_name!r} comes with {PROVIDERS[cmd_name]}, which is not installed here", ctx
            )
        return None


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cortex-cli", prog_name="cortex", message="%(prog)s %(version)s")
@click.pass_context
def cortex(context: click.Context) -> None:
    """Start a cortex fleet, look at it, change it."""
    context.obj = surroundings()


for _command in (
    bench,
    config,
    decisions,
    explain,
    fit,
    load,
    models,
    nodes,
    pin,
    simulate,
    sleep,
    status,
    unload,
    unpin,
    up,
    wake,
    weights,
):
    cortex.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; `None` takes those of the process.

    Returns:
        The exit status: 0 fine, 1 the fleet or an answer is not, 2 usage or configuration,
        130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = cortex.main(arguments, prog_name="cortex", standalone_mode=False)
        # A reader that went away shows at the flush, which must not wait for the interpreter's end.
        sys.stdout.flush()
        return result if isinstance(result, int) else FINE
    except click.UsageError as error:
        return _failed(_with_hint(error), WRONG_USE)
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except SettingsError as error:
        return _failed(error.message, WRONG_USE)
    except CortexError as error:
        return _failed(error.message, BAD)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as error:
        return _status_of(error)
    except BrokenPipeError:
        # As Python's manual advises: what is left in the buffer must not fail at exit again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD
    except Exception as error:  # noqa: BLE001 - the edge: a bug is one line as well
        if sys.flags.dev_mode:
            traceback.print_exc()
        return _failed(
            f"a bug of cortex: {type(error).__name__}: {error} (see it with python -X dev)", BAD
        )


def _with_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "cortex"
    return f"{error.format_message()} (see '{path} --help')"


def _status_of(error: SystemExit) -> int:
    """Return what the interpreter would have made of it."""
    if error.code is None or isinstance(error.code, int):
        return error.code or FINE
    return _failed(str(error.code), BAD)


def _failed(message: str, status: int) -> int:
    click.echo(f"cortex: {' '.join(message.split())}", err=True)
    return status
