"""Tests bind what is free, never a number: several runs share one machine."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.repository.checkout import ROOT

TESTS = sorted((ROOT / "tests").glob("**/*.py"))
BINDING_CALLS = {"bind", "create_server", "start_server"}
BINDING_OPTIONS = {"--port", "--listen", "--metrics-listen", "--neuron-port"}


def bound_ports(tree: ast.AST) -> list[str]:
    """Give every port, other than 0, that a socket call or a command line in `tree` names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in BINDING_CALLS:
                values = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                found += [str(v) for v in values if type(v) is int and v >= 1024]
        elif isinstance(node, ast.List | ast.Tuple):
            words = [n.value if isinstance(n, ast.Constant) else None for n in node.elts]
            found += [str(b) for a, b in pairwise(words) if a in BINDING_OPTIONS and is_fixed(b)]
    return found


def is_fixed(address: object) -> bool:
    """Tell whether a command-line value, if it is written out, names a port that could be bound.

    65535 is left to the tests of the limit itself.
    """
    found = re.fullmatch(r"(?:(?:[\d.]+|localhost|\[[\d:]+\]):)?(\d+)", str(address))
    return found is not None and 0 < int(found[1]) < 65535


@pytest.mark.parametrize("module", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_binds_a_fixed_port(module: Path) -> None:
    """Ours: port 0, and the number read back."""
    assert bound_ports(ast.parse(module.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        'socket.create_server(("127.0.0.1", 31313))',
        'run(["cortex", "up", "--listen", "127.0.0.1:31313"])',
    ],
)
def test_a_fixed_port_is_found(code: str) -> None:
    """Ours: the check above can fail."""
    assert bound_ports(ast.parse(code)) == ["31313" if "create" in code else "127.0.0.1:31313"]
