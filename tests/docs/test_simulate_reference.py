"""The reference of simulations has every key and field, with the default that the code has."""

import re

import msgspec
import pytest

from cortex_core.simulation.generate import TraceFile
from cortex_core.simulation.machines import FleetFile
from cortex_core.simulation.optimum import Optimum
from cortex_core.simulation.run import CallerResult, Result
from cortex_core.simulation.trace import Arrival
from tests.docs.tables import rows_of, section_of
from tests.repository.checkout import ROOT
from tests.repository.test_settings_reference import TOP, rows_of as keys_of


def documented(chapter: str) -> list[tuple[str, ...]]:
    """Give (section, key, default) of every row of a chapter."""
    text = (ROOT / "docs" / "reference" / "simulate.md").read_text()
    (mine,) = [part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(chapter)]
    section, rows = TOP, list[tuple[str, ...]]()
    for line in mine.splitlines():
        if heading := re.fullmatch(r"### `(.+)`", line):
            section = heading[1]
        elif row := re.match(r"\| `(\w+)` \| `?(.+?)`? \| .+ \|$", line):
            rows.append((section, row[1], row[2]))
    return rows


@pytest.mark.parametrize(
    ("chapter", "kind"), [("`fleet.toml`", FleetFile), ("Trace definitions", TraceFile)]
)
def test_the_reference_has_every_key(chapter: str, kind: type[msgspec.Struct]) -> None:
    """Ours: as for the settings."""
    assert sorted(documented(chapter)) == sorted(keys_of(kind, "", TOP))


def test_the_reference_has_every_field_of_a_line() -> None:
    """Ours: as above."""
    assert {row[0] for row in rows_of("simulate", "Traces")} == set(Arrival.__struct_fields__)


@pytest.mark.parametrize(
    ("section", "kind"),
    [("results", Result), ("results.callers", CallerResult), ("optimum", Optimum)],
)
def test_the_reference_has_every_field_that_is_printed(
    section: str, kind: type[msgspec.Struct]
) -> None:
    """Ours: as above."""
    assert {row[0] for row in section_of("simulate", section)} == set(kind.__struct_fields__)
