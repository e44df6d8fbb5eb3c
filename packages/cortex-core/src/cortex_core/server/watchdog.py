"""A watchdog that does not depend on the event loop which it watches.

The loop beats, and tells systemd so (sd_watchdog_enabled(3)). A thread counts how long it has
not, writes the stacks of all threads to standard error and ends the process, for whatever
started it to start it again. Code that never lets go of the interpreter's lock stops the thread
as well; systemd sends SIGABRT then, at which faulthandler writes the same stacks.
"""

import asyncio
import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator, Mapping

import msgspec

from cortex_core.server.notify import WATCHDOG, notify

WEDGED = 70
"""Exit status of a process whose event loop did not turn; `EX_SOFTWARE` of sysexits.h."""

DEFAULT_LIMIT_S = 60.0
"""How long the loop may stand still where systemd sets no limit."""

# Before systemd's time is over: the thread says more than a signal would.
_EARLY = 0.9
_BEATS_PER_LIMIT = 3
_LOOKS_PER_LIMIT = 40
# Standard error may be what the loop is stuck on.
_REPORT_TIMEOUT_S = 5.0
_STDERR = 2


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How often the loop beats and how long it may be still, in seconds."""

    beat_s: float
    """Between two beats."""
    look_s: float
    """Between two looks of the thread."""
    silence_s: float
    """Without a beat, before the process ends."""
    is_awaited: bool
    """Whether systemd waits for the beats."""


def times_from(environ: Mapping[str, str], pid: int) -> Times:
    """Read `WATCHDOG_USEC`, unless `WATCHDOG_PID` says that it is meant for another process.

    Args:
        environ: as systemd sets it; a value that is no positive number counts as none.
        pid: of the process that asks.
    """
    span_s = 0.0
    if environ.get("WATCHDOG_PID", str(pid)) == str(pid):
        with contextlib.suppress(ValueError):
            span_s = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    is_awaited = span_s > 0
    if not is_awaited:
        span_s = DEFAULT_LIMIT_S
    return Times(
        beat_s=span_s / _BEATS_PER_LIMIT,
        look_s=span_s / _LOOKS_PER_LIMIT,
        silence_s=span_s * _EARLY if is_awaited else span_s,
        is_awaited=is_awaited,
    )


class Silence:
    """How long the loop was seen to stand still while the process ran.

    A process that is stopped, by a signal, a debugger or a suspended machine, does not look
    either. One gap between two looks counts for two looks at most, however long it was, so that
    the loop gets its turn before it is judged.
    """

    def __init__(self, look_s: float, now_s: float) -> None:
        self._most_s = 2 * look_s
        self._looked_s = now_s
        self._beats = -1
        self._still_s = 0.0

    def look(self, now_s: float, beats: int) -> float:
        """Return the seconds without a beat.

        Args:
            now_s: monotonic seconds.
            beats: how many there were since the start.
        """
        gap_s = min(now_s - self._looked_s, self._most_s)
        self._still_s = self._still_s + gap_s if beats == self._beats else 0.0
        self._looked_s, self._beats = now_s, beats
        return self._still_s


@contextlib.contextmanager
def watching(environ: Mapping[str, str]) -> Iterator[None]:
    """Watch the running event loop; a process whose loop stands still ends with `WEDGED`.

    Args:
        environ: read for `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    """
    times = times_from(environ, os.getpid())
    pulse = _Pulse(times, environ)
    over = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(pulse, times, over), daemon=True, name="loop-watchdog"
    )
    if not faulthandler.is_enabled():
        faulthandler.enable(_STDERR)
    pulse.beat()
    thread.start()
    try:
        yield
    finally:
        over.set()
        pulse.stop()


class _Pulse:
    """Counts the turns of the running loop, one in `beat_s`, and tells systemd of each."""

    def __init__(self, times: Times, environ: Mapping[str, str]) -> None:
        self.beats = 0
        self._times = times
        self._environ = environ
        self._next: asyncio.TimerHandle | None = None

    def beat(self) -> None:
        self.beats += 1
        if self._times.is_awaited:
            notify(WATCHDOG, self._environ)
        self._next = asyncio.get_running_loop().call_later(self._times.beat_s, self.beat)

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()


def _watch(pulse: _Pulse, times: Times, over: threading.Event) -> None:
    silence = Silence(times.look_s, time.monotonic())
    while not over.wait(times.look_s):
        if silence.look(time.monotonic(), pulse.beats) >= times.silence_s:
            _end(times.silence_s)


def _end(silence_s: float) -> None:
    """Write the stacks and end the process, also if they cannot be written."""
    writer = threading.Thread(target=_report, args=(silence_s,), daemon=True, name="last-words")
    writer.start()
    writer.join(_REPORT_TIMEOUT_S)
    os._exit(WEDGED)


def _report(silence_s: float) -> None:
    # By way of memory: faulthandler holds the interpreter's lock while it writes, and the
    # reader of standard error may be gone.
    with open(os.memfd_create("stacks"), "w+b") as stacks:
        faulthandler.dump_traceback(stacks)
        stacks.seek(0)
        said = f"the event loop has not turned for {silence_s:g} s; exit status {WEDGED}\n"
        left = said.encode() + stacks.read()
    while left:
        left = left[os.write(_STDERR, left) :]
