"""Links between the pages lead somewhere, also on the pages of a forge, which Sphinx does not see."""

import re
from pathlib import Path

import pytest

from tests.repository.checkout import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """Give the anchors of a page's headings as forges make them."""
    kept = (
        re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(page.read_text())
    )
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Ours: a page that moved is noticed here."""
    lost = []
    for target, anchor in LINK.findall(page.read_text()):
        to = (page.parent / target).resolve() if target else page
        if not to.exists() or (anchor and anchor not in anchors_of(to)):
            lost.append(f"{target}#{anchor}")

    assert not lost
