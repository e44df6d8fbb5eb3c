"""Listening sockets: made here, because their options are inherited by every connection."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence

from cortex_core.errors import CortexError
from cortex_core.server.hypercorn import BACKLOG

FIRST_INHERITED_FD = 3
"""sd_listen_fds(3): passed descriptors start here."""

# What the kernel may hold of an answer that its caller does not read; by default it grows to
# about 4 MiB per connection.
_SEND_BUFFER_BYTES = 128 * 1024
# An idle connection whose other end is gone is found after 30 + 3 * 10 s.
_KEEPALIVE_IDLE_S = 30
_KEEPALIVE_INTERVAL_S = 10
_KEEPALIVE_PROBES = 3
# Data that is not acknowledged for so long ends the connection, also when the window is zero.
_USER_TIMEOUT_MS = 30_000

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\[\]:/\s]*)):(?P<port>\d{1,5})")


class ListenError(CortexError):
    """An address cannot be listened on; the message names it."""


class ListeningSocket:
    """A socket that listens already: callers may connect, and wait to be accepted."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        name = sock.getsockname()
        is_local = sock.family == socket.AF_UNIX
        # The name begins with a zero byte, and is of ASCII otherwise.
        self.host: str = name.decode() if is_local else name[0]
        self.port: int = 0 if is_local else name[1]
        """The real one, also when port 0 was asked for; 0 of one that has a name."""

    @property
    def address(self) -> str:
        """`HOST:PORT` as bound, an IPv6 host in brackets."""
        return _joined(self.host, self.port)

    @property
    def url(self) -> str:
        """URL under which this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{_joined(host, self.port)}"

    def close(self) -> None:
        """Stop listening; nothing happens the second time."""
        self.socket.close()


def open_listener(address: str, inherited: Sequence[ListeningSocket] = ()) -> ListeningSocket:
    """Listen on `HOST:PORT`, or take the inherited socket of that port.

    Args:
        address: an IPv6 host stands in brackets, an empty host means all addresses, and port 0
            takes any free one.
        inherited: what `inherited_listeners` found.

    Raises:
        ListenError: not an address, not one of this machine, or taken.
    """
    host, port = parse_address(address)
    for candidate in inherited:
        if port and candidate.port == port:
            _set_options(candidate.socket)
            return candidate
    sock = None
    try:
        family, _, _, _, target = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_options(sock)
        sock.bind(target)
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise ListenError(f"cannot listen on {address}: {_reason(error)}") from error
    return ListeningSocket(sock)


def open_abstract() -> ListeningSocket:
    """Listen under a name of the kernel's choice in its abstract namespace (unix(7)).

    It is for other processes of this daemon, and nothing of it stays, however the daemon ends. Any
    user of the machine may connect; whoever serves it must know its callers.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("")
    sock.listen(BACKLOG)
    return ListeningSocket(sock)


def inherited_listeners(
    environ: Mapping[str, str], pid: int, first_fd: int = FIRST_INHERITED_FD
) -> tuple[ListeningSocket, ...]:
    """Return the sockets that systemd passed to this process; empty when there are none.

    Args:
        environ: `LISTEN_PID` and `LISTEN_FDS` are read (sd_listen_fds(3)).
        pid: this process.
        first_fd: where they start.

    Raises:
        ListenError: a descriptor is not a listening TCP socket.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return ()
    count = environ.get("LISTEN_FDS", "0")
    if not count.isdecimal():
        return ()
    return tuple(_adopt(fd) for fd in range(first_fd, first_fd + int(count)))


@contextlib.contextmanager
def closing_all(listeners: Sequence[ListeningSocket]) -> Iterator[None]:
    """Close them on the way out, whoever else did before."""
    try:
        yield
    finally:
        for listener in listeners:
            listener.close()


def parse_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`.

    Raises:
        ListenError: it is not of that form, or the port is over 65535.
    """
    match = _ADDRESS.fullmatch(address)
    port = int(match["port"]) if match else -1
    if match is None or port > 65535:
        raise ListenError(f"cannot listen on {address!r}: HOST:PORT or [IPV6]:PORT is needed")
    return match["v6"] or match["host"] or "", port


def _adopt(fd: int) -> ListeningSocket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        is_tcp = sock.type == socket.SOCK_STREAM and sock.family in (
            socket.AF_INET,
            socket.AF_INET6,
        )
        listens = is_tcp and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"inherited descriptor {fd}: {_reason(error)}") from error
    if not listens:
        sock.close()
        raise ListenError(f"inherited descriptor {fd} is not a listening TCP socket")
    return ListeningSocket(sock)


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is in use by another process"
    return error.strerror or str(error)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
