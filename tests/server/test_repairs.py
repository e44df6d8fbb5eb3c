"""The repairs fit the server that is installed, or nothing starts."""

import socket

import pytest
from hypercorn.protocol.h11 import H11Protocol

from cortex_core.server.hypercorn import (
    HypercornChangedError,
    Repair,
    apply_repairs,
    tamed_config,
)
from tests.server.apps import hello
from tests.server.harness import get, serving


def test_repairs_can_be_applied_again() -> None:
    """Ours: two servers in one process are fine."""
    apply_repairs()
    first = H11Protocol.handle
    apply_repairs()

    assert H11Protocol.handle is first


class Theirs:
    """A class of the server's, with a method that reads as it did when it was repaired."""

    def method(self) -> str:
        return "as it was"


def repaired(self: Theirs) -> str:
    return "repaired"


def test_another_server_stops_the_start() -> None:
    """Ours: repairs that no longer fit would fail some night."""
    repair = Repair(owner=Theirs, name="method", digest="0" * 16, new=repaired)

    with pytest.raises(HypercornChangedError, match=r"Theirs\.method is not the one"):
        repair.check()


def test_a_method_that_is_gone_stops_the_start() -> None:
    """Ours: as above."""
    repair = Repair(owner=Theirs, name="gone", digest="0" * 16, new=repaired)

    with pytest.raises(HypercornChangedError, match=r"Theirs\.gone"):
        repair.check()


async def test_answers_do_not_name_the_server() -> None:
    """Ours: a version in a header helps those who look for one."""
    async with serving(hello) as server:
        assert "server" not in (await server.ask(get())).headers


def test_only_http_1_is_offered() -> None:
    """Ours: with TLS the caller would choose HTTP/2 otherwise."""
    with socket.socket() as sock:
        config = tamed_config(sock, keep_alive_s=5)

        assert config.alpn_protocols == ["http/1.1"]
        assert config.create_sockets().insecure_sockets == [sock]
