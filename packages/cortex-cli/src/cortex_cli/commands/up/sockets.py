"""The listening sockets of a fleet, bound before anything is started.

The daemons inherit them, so a free port that was found here cannot be taken by somebody else
before its daemon is up, and a port that is in use is known at once.
"""

import contextlib
import socket

import msgspec

from cortex_cli.commands.up.plan import Address, Wishes, neuron_addresses
from cortex_cli.context import FleetError

BACKLOG = 4096
"""Connections that may wait for a daemon to accept them, as many as when it listens itself."""


class Sockets(msgspec.Struct, frozen=True, kw_only=True):
    """All sockets; their daemons take them over."""

    api: socket.socket
    metrics: socket.socket
    neurons: tuple[socket.socket, ...]
    """Of node 0, 1, ..."""

    def close(self) -> None:
        """Let go of this process' copies, so that a daemon's end shows as a refusal."""
        for listener in (self.api, self.metrics, *self.neurons):
            listener.close()


def bound(wishes: Wishes) -> Sockets:
    """Bind everything that `wishes` name.

    Raises:
        FleetError: an address cannot be had; nothing stays bound.
    """
    with contextlib.ExitStack() as stack:
        found = Sockets(
            api=stack.enter_context(_listener(wishes.listen, "--listen")),
            metrics=stack.enter_context(_listener(wishes.metrics_listen, "--metrics-listen")),
            neurons=tuple(
                stack.enter_context(_listener(address, "--neuron-port"))
                for address in neuron_addresses(wishes)
            ),
        )
        stack.pop_all()
    return found


def port_of(listener: socket.socket) -> int:
    """Return the port that a socket got."""
    port: int = listener.getsockname()[1]
    return port


def _listener(address: Address, option: str) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise FleetError(f"{option}: cannot listen on {address}: {error.strerror}") from None
    try:
        # Connections of an earlier life that still close must not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise FleetError(
            f"{option}: cannot listen on {address}: {reason}; choose another with {option}"
        ) from None
    return listener
