"""What every command needs of its surroundings, and how a command says that it failed."""

import os
import sys
from collections.abc import Mapping
from typing import TextIO

import click
import msgspec

DEFAULT_ENDPOINT = "http://127.0.0.1:31313"
ENDPOINT_VARIABLE = "CORTEX_ENDPOINT"


class FleetError(click.ClickException):
    """The fleet, or an answer of it, is not as it should be; one line, exit status 1."""

    exit_code = 1


class ConfigurationError(click.ClickException):
    """Something must be changed before the command can work; one line, exit status 2."""

    exit_code = 2


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """What the output can show."""

    is_coloured: bool = False
    is_unicode: bool = True


def style_of(stream: TextIO, environ: Mapping[str, str]) -> Style:
    """Return what `stream` can show.

    Colours only on a terminal, and not with a non-empty `NO_COLOR` (no-color.org) or with
    `TERM=dumb`; block characters only where the encoding has them.
    """
    is_plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    return Style(
        is_coloured=stream.isatty() and not is_plain, is_unicode=encoding in ("utf8", "utf8sig")
    )


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a command was started in; the group puts it into click's context."""

    environ: Mapping[str, str]
    style: Style
    """Of standard output."""


def surroundings() -> Surroundings:
    """Return those of this process."""
    environ = dict(os.environ)
    return Surroundings(environ=environ, style=style_of(sys.stdout, environ))
