"""The command `cortex-gateway`, which is `cortex serve` as well."""

import argparse
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Sequence

from prometheus_client import disable_created_metrics

from cortex_core.errors import SettingsError
from cortex_core.server.clock import SystemClock
from cortex_core.server.logging import logging_to
from cortex_core.server.serve import run
from cortex_gateway.lifespan import run_gateway
from cortex_gateway.reload.configuration import read_configuration
from cortex_gateway.settings import DEFAULT_PATH

NAME = "cortex-gateway"

WRONG_SETTINGS = 2
"""Exit status when a settings file cannot be used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway and return the exit status.

    Args:
        argv: arguments after the command's name; `None` takes those of the process.
    """
    version = importlib.metadata.version(NAME)
    path = _parser(version).parse_args(argv).config
    try:
        configuration = read_configuration(path, os.environ)
    except SettingsError as error:
        print(f"{NAME}: {error.message}", file=sys.stderr)
        return WRONG_SETTINGS
    # They double the number of series, and nobody reads them.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library is untyped here
    settings = configuration.settings
    with logging_to(form=settings.gateway.log_format, level=settings.gateway.log_level):
        gateway = run_gateway(
            path,
            configuration,
            clock=SystemClock(),
            environ=os.environ,
            version=version,
        )
        return run(gateway, NAME, os.environ)


def _parser(version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Serve the fleet of the neurons that the settings file names.",
    )
    parser.add_argument(
        "--config",
        type=pathlib.Path,
        default=DEFAULT_PATH,
        metavar="PATH",
        help="settings file (default: %(default)s)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
