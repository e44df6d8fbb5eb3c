"""Both daemons tell a service manager that they are ready and that their loops turn."""

import socket
from pathlib import Path

import pytest

from tests.fleet.daemons import gateway, simulated_neuron

WAIT_S = 30.0
BEAT = b"WATCHDOG=1"


def heard(manager: socket.socket) -> list[bytes]:
    """Return what comes up to the second beat after "ready"."""
    messages: list[bytes] = []
    while b"READY=1" not in messages or messages[messages.index(b"READY=1") :].count(BEAT) < 2:
        messages.append(manager.recv(100))
    return messages


def test_daemons_beat_while_they_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd_notify(3), sd_watchdog_enabled(3)."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as of_neuron,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as of_gateway,
    ):
        for manager, name in ((of_neuron, "of-neuron"), (of_gateway, "of-gateway")):
            manager.bind(str(tmp_path / name))
            manager.settimeout(WAIT_S)
        monkeypatch.setenv("WATCHDOG_USEC", "9000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "of-neuron"))
        with simulated_neuron(tmp_path) as node:
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "of-gateway"))
            with gateway(tmp_path, node=node.url):
                assert set(heard(of_gateway)) == {b"READY=1", BEAT}
            assert set(heard(of_neuron)) == {b"READY=1", BEAT}
