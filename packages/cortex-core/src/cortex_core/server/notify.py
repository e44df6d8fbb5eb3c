"""Telling systemd how we are (sd_notify(3)), without a dependency."""

import contextlib
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send `state` to the service manager.

    Args:
        state: one or more `NAME=value` lines.
        environ: `NOTIFY_SOCKET` says where to; nothing is sent without it.

    Returns:
        Whether it was sent. A manager that does not listen is no reason to fail.
    """
    path = environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
        return True
    return False
