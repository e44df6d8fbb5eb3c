"""What all texts are made of: tables, bars, sizes, colours."""

import unicodedata
from collections.abc import Iterable, Sequence

import click

from cortex_cli.context import Style
from cortex_core.replica import LoadProgress

GIB = 1 << 30
BAR_CELLS = 20
"""Wide enough for steps of 5 % (0.6 % with eighths), narrow enough for 80 columns."""

NOTHING = "-"
"""In a cell of which nothing is known."""

_EIGHTHS = " ▏▎▍▌▋▊▉"
_WELL = frozenset(
    {"ok", "up", "loaded", "serve", "wake", "load", "unloaded", "moved", "pinned", "unpinned"}
    | {"cordoned", "uncordoned", "drained"}
)
_COMING = frozenset(
    {"loading", "reloading", "recovering", "unloading", "sleeping", "suspect"}
    | {"coming", "evict", "wait"}
)


def text_of(lines: Iterable[str], style: Style) -> str:
    """Return lines as one text that ends in a newline, in characters that the terminal has."""
    text = "\n".join(lines) + "\n"
    return text if style.is_unicode else text.encode("ascii", "replace").decode()


def bar(used: int, total: int, *, is_unicode: bool, cells: int = BAR_CELLS) -> str:
    """Return a bar of `cells` characters, filled as `used` is of `total`.

    Less than nothing counts as nothing and more than all as all; a `total` of 0 gives an
    empty bar. Anything above 0 shows at least one step.
    """
    share = min(1.0, max(0.0, used / total)) if total > 0 else 0.0
    if not is_unicode:
        full = _steps(share, cells)
        return "#" * full + "." * (cells - full)
    eighths = _steps(share, cells * 8)
    full, rest = divmod(eighths, 8)
    filled = "█" * full + (_EIGHTHS[rest] if rest else "")
    return filled + "░" * (cells - len(filled))


def size(size_bytes: int | None) -> str:
    """Return bytes as GiB with one digit after the point, or `-` when not known."""
    return NOTHING if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], style: Style) -> list[str]:
    """Return aligned lines: columns two blanks apart, each as wide as its widest cell.

    Args:
        header: names of the columns.
        rows: cells, as many in each row as in `header`; they may hold colours.
        style: whether to paint the header.
    """
    body = [[click.style(name, bold=True) if style.is_coloured else name for name in header]]
    body.extend(list(row) for row in rows)
    widths = [max(_width(row[column]) for row in body) for column in range(len(header))]
    return [
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in body
    ]


def gib(size_bytes: int | None) -> str:
    """Return bytes as GiB without the unit, or `?` when not known."""
    return "?" if size_bytes is None else f"{size_bytes / GIB:.1f}"


def told(progress: LoadProgress) -> str:
    """Return how far a load is."""
    text = progress.stage
    if progress.done_bytes is not None:
        text += f" {gib(progress.done_bytes)} of {size(progress.total_bytes)}"
    if progress.eta_s is not None:
        text += f", {progress.eta_s:.0f} s left"
    return text


def painted(word: str, style: Style) -> str:
    """Return a word of state in the colour of what it means."""
    word = clean(word)
    if not style.is_coloured:
        return word
    if word in _WELL:
        return click.style(word, fg="green")
    return click.style(word, fg="yellow" if word in _COMING else "red")


def clean(text: str) -> str:
    """Return `text` on one line, without anything that a terminal would obey."""
    return "".join(
        " " if character in "\n\t" else character if character.isprintable() else "�"
        for character in text
    )


def _steps(share: float, steps: int) -> int:
    return max(1, round(share * steps)) if share > 0 else 0


def _width(cell: str) -> int:
    """Return the columns that `cell` takes on a terminal; colours take none."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in click.unstyle(cell)
    )
