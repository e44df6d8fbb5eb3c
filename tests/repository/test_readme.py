"""The README's two commands are the ones that are checked."""

import re

import pytest

from tests.repository.checkout import ROOT

BOOTSTRAP = "python3 -m venv .venv && .venv/bin/pip install -r requirements/nox.txt"


def readme_commands() -> list[str]:
    """Give the shell lines of the README that set up this checkout, in order."""
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_readme_gives_two_commands() -> None:
    """Ours: one brings up a fleet, one checks everything."""
    up, check = readme_commands()

    assert up == f"{BOOTSTRAP} && .venv/bin/nox -s up"
    assert re.fullmatch(re.escape(BOOTSTRAP) + r" && \.venv/bin/nox -s [a-z ]+", check)
    assert "tests" in check.split()


def test_ci_runs_the_command_of_the_readme() -> None:
    """Ours: what a stranger runs is what is run for every change, to the letter."""
    script = (ROOT / ".ci" / "run").read_text()

    assert [line for line in script.splitlines() if ".venv" in line] == [readme_commands()[1]]
    assert "set -euo pipefail" in script


@pytest.mark.parametrize(
    "session", ["up", "tests", "lint", "types", "standalone", "build", "bench"]
)
def test_session_exists_and_says_what_it_does(session: str) -> None:
    """Ours: `nox -l` is the list of what one can do here."""
    source = (ROOT / "noxfile.py").read_text()

    assert re.search(rf'^def {session}\(session: nox\.Session\) -> None:\n    """\w', source, re.M)
