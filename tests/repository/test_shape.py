"""Rooms stay small enough to be read in one sitting."""

import ast
from pathlib import Path

import pytest

from tests.repository.checkout import PACKAGES, ROOT, own_modules, package_modules

MODULE_LINES = 400
FUNCTION_LINES = 40

by_path = pytest.mark.parametrize(
    "module", own_modules(), ids=lambda path: str(path.relative_to(ROOT))
)
by_shipped_path = pytest.mark.parametrize(
    "module", package_modules(), ids=lambda path: str(path.relative_to(ROOT))
)


@by_path
def test_module_fits_its_budget(module: Path) -> None:
    """Ours: 400 lines; past that it holds two subjects."""
    lines = len(module.read_text().splitlines())

    assert lines <= MODULE_LINES


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function from its `def` on, docstring left out."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@by_path
def test_functions_fit_their_budget(module: Path) -> None:
    """Ours: 40 lines beside the docstring."""
    tree = ast.parse(module.read_text())

    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = {f.name: body_lines(f) for f in functions if body_lines(f) > FUNCTION_LINES}

    assert too_long == {}


@by_shipped_path
def test_annotations_are_objects_at_run_time(module: Path) -> None:
    """Ours: msgspec resolves a struct's types at run time, so no module may turn them to text."""
    assert "from __future__ import annotations" not in module.read_text()


@by_shipped_path
def test_module_says_what_it_is_for(module: Path) -> None:
    """Ours: a module opens with a docstring."""
    assert ast.get_docstring(ast.parse(module.read_text()))


@pytest.mark.parametrize("dist", PACKAGES)
def test_package_ships_its_types(dist: str) -> None:
    """PEP 561: a `py.typed` beside the modules says that their annotations count."""
    assert (ROOT / "packages" / dist / "src" / PACKAGES[dist] / "py.typed").is_file()
