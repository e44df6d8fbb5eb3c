"""Sockets are made by us, with the options that every connection inherits."""

import asyncio
import os
import socket

import pytest

from cortex_core.server.listen import (
    ListenError,
    inherited_listeners,
    open_listener,
    parse_address,
)
from tests.server.apps import hello
from tests.server.harness import get, serving


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("0.0.0.0:31313", ("0.0.0.0", 31313)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("", 80)),
    ],
)
def test_address_is_split(address: str, parsed: tuple[str, int]) -> None:
    """Ours: HOST:PORT, as in the settings."""
    assert parse_address(address) == parsed


@pytest.mark.parametrize("address", ["", "localhost", "::1:80", "h:99999", "h:-1", "http://h:1"])
def test_what_is_no_address_is_named(address: str) -> None:
    """Ours: the message shows what was given and what is needed."""
    with pytest.raises(ListenError, match="HOST:PORT") as caught:
        open_listener(address)

    assert repr(address) in str(caught.value)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:0", "http://127.0.0.1:"),
        ("0.0.0.0:0", "http://127.0.0.1:"),
        ("[::1]:0", "http://[::1]:"),
    ],
)
def test_real_port_is_reported(address: str, url: str) -> None:
    """contracts.md: port 0 takes any free one, and a URL is printed that works."""
    listener = open_listener(address)

    assert listener.port > 0
    assert listener.url == f"{url}{listener.port}"
    with socket.create_connection((listener.url[7:].rpartition(":")[0].strip("[]"), listener.port)):
        pass
    listener.close()


def test_port_in_use_is_named() -> None:
    """Ours: one line, at once; never two processes on one port."""
    first = open_listener("127.0.0.1:0")

    with pytest.raises(ListenError) as caught:
        open_listener(first.address)

    assert str(caught.value) == (
        f"cannot listen on {first.address}: the port is in use by another process"
    )
    first.close()


def test_address_of_another_machine_is_refused() -> None:
    """RFC 5737: 192.0.2.0/24 belongs to no machine."""
    with pytest.raises(ListenError, match=r"cannot listen on 192.0.2.1:0: "):
        open_listener("192.0.2.1:0")


def test_connections_inherit_the_options() -> None:
    """Linux copies them from the listening socket; see tcp(7) and socket(7)."""
    listener = open_listener("127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", listener.port)):
        connection, _ = listener.socket.accept()
        with connection:
            # The kernel doubles what is asked for.
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 128 * 1024
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            tcp = [
                connection.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_USER_TIMEOUT,
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                )
            ]
            assert tcp == [30_000, 30, 10, 3]
    listener.close()


async def test_a_burst_of_connections_is_queued_not_dropped() -> None:
    """Ours: with a backlog of 100 the others would wait a second and more for their SYN."""
    listener = open_listener("127.0.0.1:0")
    loop = asyncio.get_running_loop()
    clients = [socket.socket() for _ in range(500)]

    async with asyncio.timeout(0.9):
        for client in clients:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", listener.port))

    for client in clients:
        client.close()
    listener.close()


async def test_burst_is_served() -> None:
    """Ours: the backlog survives the hand-over to the server."""
    async with serving(hello) as server:
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(server.ask(get())) for _ in range(400)]

        assert {answer.result().body for answer in answers} == {b"hi"}


def passed_on(sock: socket.socket) -> int:
    """Give a descriptor as systemd would: a duplicate that nobody else here knows."""
    fd = os.dup(sock.fileno())
    sock.close()
    return fd


def test_sockets_of_the_service_manager_are_taken() -> None:
    """sd_listen_fds(3)."""
    fd = passed_on(socket.create_server(("127.0.0.1", 0)))
    environ = {"LISTEN_PID": "77", "LISTEN_FDS": "1"}

    (inherited,) = inherited_listeners(environ, 77, first_fd=fd)
    listener = open_listener(f"127.0.0.1:{inherited.port}", [inherited])

    assert listener is inherited
    assert not os.get_inheritable(fd)
    assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 128 * 1024
    with socket.create_connection(("127.0.0.1", listener.port)):
        pass
    listener.close()


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_PID": "78", "LISTEN_FDS": "1"}, {"LISTEN_PID": "77"}, {"LISTEN_FDS": "1"}],
)
def test_sockets_for_somebody_else_are_left_alone(environ: dict[str, str]) -> None:
    """sd_listen_fds(3): the variables are inherited by children, which they do not concern."""
    assert inherited_listeners(environ, 77) == ()


def test_inherited_socket_must_listen() -> None:
    """Ours: another kind would fail later, and less clearly."""
    fd = passed_on(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    with pytest.raises(ListenError, match=f"inherited descriptor {fd} is not a listening"):
        inherited_listeners({"LISTEN_PID": "77", "LISTEN_FDS": "1"}, 77, first_fd=fd)
