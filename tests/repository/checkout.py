"""Where the things of this repository are, for the tests that check its shape."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "cortex-core": "cortex_core",
    "cortex-gateway": "cortex_gateway",
    "neuron": "neuron",
    "cortex-cli": "cortex_cli",
}
"""Distribution name to import name."""


def manifest(dist: str) -> dict[str, Any]:
    """Give the `[project]` table of one package."""
    text = (ROOT / "packages" / dist / "pyproject.toml").read_text()
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def package_modules() -> list[Path]:
    """Give every module that is shipped, sorted."""
    return sorted(ROOT.glob("packages/*/src/**/*.py"))


def own_modules() -> list[Path]:
    """Give every Python file of the project, shipped or not, sorted."""
    folders = ("tests", "benchmarks", "tools")
    rest = [path for folder in folders for path in (ROOT / folder).glob("**/*.py")]
    return sorted([*package_modules(), *rest, ROOT / "noxfile.py"])
