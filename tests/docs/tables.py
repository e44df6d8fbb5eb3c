"""The tables of a page of the reference."""

import re

from tests.repository.checkout import ROOT


def rows_of(page: str, section: str | None = None) -> list[tuple[str, ...]]:
    """Return the cells of all table rows, marks of code taken off, headings left out.

    Args:
        page: name below `docs/reference`, without its end.
        section: heading of level 2 whose tables are meant; `None` takes the whole page.
    """
    text = _read(page)
    return _rows(text if section is None else _part(text, "##", section))


def section_of(page: str, section: str) -> list[tuple[str, ...]]:
    """Return the same for a heading of level 3, in backticks on the page."""
    return _rows(_part(_read(page), "###", section))


def _read(page: str) -> str:
    return (ROOT / "docs" / "reference" / f"{page}.md").read_text()


def _part(text: str, level: str, heading: str) -> str:
    parts = re.split(rf"^{level} ", text, flags=re.MULTILINE)
    (part,) = [part for part in parts[1:] if part.splitlines()[0].strip("`") == heading]
    return re.split(r"^#+ ", part, flags=re.MULTILINE)[0] if level == "###" else part


def _rows(text: str) -> list[tuple[str, ...]]:
    rows = [
        tuple(cell.strip().replace("`", "") for cell in line.strip("|").split(" |"))
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert rows, "there is no table"
    return rows
