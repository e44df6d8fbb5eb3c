"""Ends engine processes whose daemon is gone.

vLLM loads the entry points of `vllm.general_plugins` in every process that it starts, and
this one holds no import that costs anything. A signal at the parent's death
(`PR_SET_PDEATHSIG`) would be simpler, but it fires when the thread ends that started the
process, and loads run in threads. The fork server, which the main thread starts, has it: a
thread of its own would be copied, half, into every engine.
"""

import ctypes
import os
import signal
import threading
import time

DAEMON_VARIABLE = "NEURON_DAEMON_PID"
"""Environment variable with the process id of the daemon that the engine belongs to."""

_INTERVAL_S = 1.0
_EXIT_STATUS = 70
"""`EX_SOFTWARE` of sysexits.h."""

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def end_with_parent() -> None:
    """Have the kernel end this process, a child of the daemon's, with it."""
    daemon = int(os.environ.get(DAEMON_VARIABLE) or 0)
    if daemon in (0, os.getpid()):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        # It ended before the kernel was asked.
        os._exit(_EXIT_STATUS)


def register() -> None:
    """Watch the daemon from inside an engine process; does nothing anywhere else."""
    daemon = int(os.environ.get(DAEMON_VARIABLE) or 0)
    if daemon in (0, os.getpid()) or any(
        thread.name == _THREAD_NAME for thread in threading.enumerate()
    ):
        return
    threading.Thread(target=_watch, args=(daemon,), daemon=True, name=_THREAD_NAME).start()


def _watch(daemon: int) -> None:
    while _is_alive(daemon):
        time.sleep(_INTERVAL_S)
    # The normal way out would wait for the engine's other threads, which wait for the daemon.
    os._exit(_EXIT_STATUS)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_THREAD_NAME = "neuron-watchdog"
