"""What is replaced in Hypercorn is what we know, or nothing starts."""

import pytest

from cortex_core.server.hypercorn import HypercornChangedError, check, take_over
from tests.server.apps import hello
from tests.server.harness import get, serving


def test_it_can_be_taken_over_again() -> None:
    """Ours: two servers in one process are fine."""
    take_over()
    take_over()


def known() -> str:
    """Stand in for the function that makes connections."""
    return "as it was"


def test_another_server_stops_the_start() -> None:
    """Ours: one that is taken over in another way than it thinks would fail some night."""
    with pytest.raises(HypercornChangedError, match="known is not the one"):
        check(known, "0" * 16)


async def test_answers_do_not_name_the_server() -> None:
    """Ours: a version in a header helps those who look for one."""
    async with serving(hello) as server:
        assert "server" not in (await server.ask(get())).headers
