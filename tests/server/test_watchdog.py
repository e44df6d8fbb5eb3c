"""A loop that stands still ends its process, which says where it stood."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex_core.server.watchdog import DEFAULT_LIMIT_S, WEDGED, Silence, times_from

WAIT_S = 30.0
SHORT = {"WATCHDOG_USEC": "600000"}

DAEMON = """
import asyncio, ctypes, os, resource, sys, time
from cortex_core.server.serve import run

def stuck():
    print("stuck", flush=True)
    time.sleep(600)

def stuck_with_the_lock():
    # In one call of C, so that who reads the line knows the lock to be kept.
    words = b"stuck\\n" + bytes(10_000_000)
    ctypes.PyDLL(None).write(1, words, len(words))

def write():
    print("writing", flush=True)
    os.write(2, bytes(100_000_000))

def say():
    print("said", flush=True)

WORDS = {"stick": stuck, "stick with the lock": stuck_with_the_lock, "write": write, "say": say}

async def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("running", flush=True)
    while (word := (await asyncio.to_thread(sys.stdin.readline)).strip()) != "end":
        WORDS[word]()

sys.exit(run(main(), "daemon", os.environ))
"""


@contextlib.contextmanager
def daemon(**environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that obeys the words on its standard input, under the watchdog."""
    paths = os.pathsep.join(sys.path)
    inherited = {name: value for name, value in os.environ.items() if "WATCHDOG" not in name}
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "PYTHONPATH": paths, **environ},
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], word: str) -> str:
    """Have `process` do something, and return the line that it prints."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return process.stdout.readline()


@contextlib.contextmanager
def service_manager(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(WAIT_S)
        yield manager


def test_systemd_hears_the_loop_beat(tmp_path: Path) -> None:
    """sd_watchdog_enabled(3): again and again, from the loop."""
    with (
        service_manager(tmp_path) as manager,
        daemon(NOTIFY_SOCKET=str(tmp_path / "notify"), **SHORT) as process,
    ):
        heard = [manager.recv(100) for _ in range(4)]

        assert heard == [b"WATCHDOG=1"] * 4
        process.communicate("end\n", timeout=WAIT_S)
        assert process.returncode == 0


def test_loop_that_stands_still_ends_the_process(tmp_path: Path) -> None:
    """Ours: no further beat, a status of its own, and the place where it stood."""
    with (
        service_manager(tmp_path) as manager,
        daemon(NOTIFY_SOCKET=str(tmp_path / "notify"), **SHORT) as process,
    ):
        assert tell(process, "stick") == "stuck\n"
        _, errors = process.communicate(timeout=WAIT_S)

        manager.setblocking(False)
        heard = 0
        with contextlib.suppress(BlockingIOError):
            while manager.recv(100):
                heard += 1

    assert process.returncode == WEDGED
    assert errors.startswith("the event loop has not turned for 0.54 s; exit status 70\n")
    assert "in stuck\n" in errors
    assert "in main\n" in errors
    assert heard >= 1


def test_lock_that_is_kept_leaves_stacks_at_the_signal_of_systemd() -> None:
    """systemd.service(5), `WatchdogSignal=`: SIGABRT, for a process whose threads cannot run."""
    with daemon() as process:
        assert tell(process, "stick with the lock") == "stuck\n"
        process.send_signal(signal.SIGABRT)
        _, errors = process.communicate(timeout=WAIT_S)

    assert process.returncode == -signal.SIGABRT
    assert "in stuck_with_the_lock\n" in errors


def test_stopped_process_goes_on() -> None:
    """Ours: as long as another takes to be ended, and it is watched after that as before."""
    with daemon(**SHORT) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        with daemon(**SHORT) as other:
            tell(other, "stick")
            assert other.wait(timeout=WAIT_S) == WEDGED
        stopped.send_signal(signal.SIGCONT)

        assert tell(stopped, "say") == "said\n"
        assert tell(stopped, "stick") == "stuck\n"
        assert stopped.wait(timeout=WAIT_S) == WEDGED


def test_reader_who_does_not_read_does_not_save_the_process() -> None:
    """Ours: a log that nobody takes is what the loop is stuck on; it ends without last words."""
    with daemon(**SHORT) as process:
        assert tell(process, "write") == "writing\n"

        assert process.wait(timeout=WAIT_S) == WEDGED


def test_silence_is_counted_from_the_last_beat() -> None:
    """Ours."""
    silence = Silence(1.0, 0.0)

    counted = [silence.look(float(now), beats) for now, beats in enumerate([1, 1, 1, 2, 2])]

    assert counted == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_time_in_which_the_process_was_stopped_is_no_silence() -> None:
    """Ours: a gap counts for two looks, however long it was."""
    silence = Silence(1.0, 0.0)
    silence.look(1.0, 5)

    assert silence.look(1000.0, 5) == 2.0
    assert silence.look(1001.0, 5) == 3.0
    assert silence.look(1002.0, 6) == 0.0


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "9000000", "WATCHDOG_PID": "8"},
    ],
)
def test_without_systemd_there_is_a_limit_as_well(environ: dict[str, str]) -> None:
    """sd_watchdog_enabled(3) for what counts as none; the limit is ours."""
    times = times_from(environ, 7)

    assert (times.silence_s, times.is_awaited) == (DEFAULT_LIMIT_S, False)


@pytest.mark.parametrize("pid", [{}, {"WATCHDOG_PID": "7"}])
def test_times_follow_systemd(pid: dict[str, str]) -> None:
    """Ours: three beats, and the end, last look included, before systemd's time is over."""
    times = times_from({"WATCHDOG_USEC": "30000000", **pid}, 7)

    assert times.is_awaited
    assert times.beat_s == 10.0
    assert times.silence_s + 2 * times.look_s < 30.0
