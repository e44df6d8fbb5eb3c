"""Becomes a daemon of `cortex up`: `python -m cortex_cli.commands.up.launch PARENT FDS MODULE ...`.

Runs in the child, between its start and the daemon: it ties the child's life to the parent's,
puts the listening sockets where systemd's protocol has them, and replaces itself. Doing this in
a program of its own rather than in a `preexec_fn` keeps Python from running between fork and
exec in a process that may have threads.
"""

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Sequence

FIRST_FD = 3
"""Where inherited sockets begin: `SD_LISTEN_FDS_START` of sd_listen_fds(3)."""

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def die_with(parent: int) -> None:
    """Get SIGTERM when `parent` ends, however it ends; do nothing where the system cannot.

    The request survives exec, but not a parent that is gone already; hence the second look.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def hand_over(fds: Sequence[int]) -> dict[str, str]:
    """Move sockets to 3, 4, ... and return the variables that announce them.

    Source: sd_listen_fds(3); `LISTEN_PID` is our own id, which exec keeps.
    """
    # First out of the way, so that no socket is overwritten by another one's new place.
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + len(fds) + 1) for fd in fds]
    for fd in fds:
        os.close(fd)
    for place, fd in enumerate(spare, start=FIRST_FD):
        os.dup2(fd, place, inheritable=True)
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}


def main(argv: Sequence[str]) -> None:
    """Replace this process by the daemon.

    Args:
        argv: id of the parent; sockets as `7,8`; the module; its arguments.
    """
    parent, listed, module, *arguments = argv
    die_with(int(parent))
    fds = [int(fd) for fd in listed.split(",") if fd]
    environ = {**os.environ, **hand_over(fds)}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environ)  # noqa: S606 - it is us


if __name__ == "__main__":
    main(sys.argv[1:])
