"""The pins say what is installed and not where from, and agree with each other."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.repository.checkout import PACKAGES, ROOT, manifest

FILES = sorted((ROOT / "requirements").glob("*.txt"))
by_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
PIN = re.compile(r"^([a-z0-9.-]+)==([^\s;]+)", re.MULTILINE)


@by_file
def test_every_line_is_a_pin_or_its_hash(file: Path) -> None:
    """Ours: no address, no path, no option; so no place is written down."""
    text = file.read_text().replace("\\\n", " ")

    for line in text.splitlines():
        assert re.fullmatch(
            r"[a-z0-9.-]+==[\w.+]+( ; [^/@]+?)? (\s*--hash=sha256:[0-9a-f]{64}\s*)+", f"{line} "
        ), line


def test_one_environment_can_hold_all_of_it() -> None:
    """Ours: no two files pin one package differently."""
    versions = defaultdict(set)
    for file in FILES:
        if file.stem == "aider":
            continue  # has an environment of its own
        for name, version in PIN.findall(file.read_text()):
            versions[name].add(version)

    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_every_input_has_its_pins() -> None:
    """Ours: `nox -s pin` writes one .txt for one .in."""
    inputs = {path.stem for path in (ROOT / "requirements").glob("*.in")}

    assert inputs == {path.stem for path in FILES}


@pytest.mark.parametrize("dist", PACKAGES)
def test_run_time_pins_cover_the_package(dist: str) -> None:
    """Ours: what a package asks for is pinned, at or above its floor."""
    project = manifest(dist)
    lines = [*project["dependencies"], *project.get("optional-dependencies", {}).get("server", [])]
    pins = dict(PIN.findall((ROOT / "requirements" / "runtime.txt").read_text()))
    floors = dict(line.split(">=") for line in lines if ">=" in line)

    for name, floor in floors.items():
        assert release(pins[name]) >= release(floor), name


def release(version: str) -> tuple[int, ...]:
    """Give the leading numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def test_tests_can_be_read_where_no_engine_is() -> None:
    """Ours: on newer interpreters nothing of the engine is installed, and all tests are read."""
    pins = {
        stem: set(dict(PIN.findall((ROOT / "requirements" / f"{stem}.txt").read_text())))
        for stem in ("engine-cpu", "runtime", "test")
    }
    only_engine = pins["engine-cpu"] - pins["runtime"] - pins["test"]
    absent = {name.replace("-", "_") for name in only_engine} | {"PIL", "vllm"}

    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").glob("**/*.py")
        for name in imported_at_once(path)
        if name in absent
    }

    assert "numpy" in absent
    assert found == set()


def imported_at_once(path: Path) -> set[str]:
    """Give the packages that a module imports when it is read."""
    nodes = ast.parse(path.read_text()).body
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in modules}
