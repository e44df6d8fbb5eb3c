"""How far something is, on standard error: a line that renews itself, or plain lines."""

import shutil
import sys
from types import TracebackType
from typing import Self

import click

from cortex_cli.context import Style, style_of
from cortex_cli.render.answers import progress_line
from cortex_core.wire.admin import LoadNews

_RENEW = "\r\x1b[K"
"""Carriage return, then erase to the end of the line (ECMA-48, CSI K)."""


class Progress:
    """Shows the news of a load; a context manager that leaves the line empty.

    Where nobody watches, a line is written for each stage alone: a log shall not fill with
    percentages.

    Args:
        is_quiet: show nothing.
        environ: what the terminal can do.
    """

    def __init__(self, environ: dict[str, str], *, is_quiet: bool) -> None:
        self._style: Style = style_of(sys.stderr, environ)
        self._is_terminal = sys.stderr.isatty() and environ.get("TERM") != "dumb"
        self._is_quiet = is_quiet
        self._stage: tuple[str | None, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_terminal and self._stage is not None:
            click.echo(_RENEW, nl=False, err=True, color=True)

    def show(self, news: LoadNews) -> None:
        """Show how far a load is."""
        if self._is_quiet:
            return
        line = progress_line(news, self._style)
        stage = (news.node, news.stage)
        if self._is_terminal:
            # A line that wraps could not be renewed.
            width = shutil.get_terminal_size().columns - 1
            click.echo(_RENEW + line[:width], nl=False, err=True, color=True)
        elif stage != self._stage:
            click.echo(line, err=True)
        self._stage = stage
