"""Processes that belong to an engine, from /proc."""

import contextlib
import os
import pathlib
import signal
from collections.abc import Iterable

import msgspec

_COMPILERS = frozenset(
    {"ninja", "nvcc", "cicc", "ptxas", "fatbinary", "gcc", "g++", "cc1", "cc1plus", "clang", "ld"}
)
"""What kernels are made with while an engine waits for them (proc(5), `comm`)."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process, told apart from a later one with the same id by when it began."""

    pid: int
    started_ticks: int
    """Clock ticks after boot (proc(5), `starttime`)."""


def family(pids: Iterable[int]) -> frozenset[Process]:
    """Return the processes `pids` that are alive, with all that descend from them."""
    table = _read_table()
    members = {pid for pid in pids if pid in table}
    grown = True
    while grown:
        children = {pid for pid, (parent, _) in table.items() if parent in members} - members
        members |= children
        grown = bool(children)
    return frozenset(Process(pid=pid, started_ticks=table[pid][1]) for pid in members)


def alive(processes: Iterable[Process]) -> frozenset[Process]:
    """Return those of `processes` that have not ended."""
    table = _read_table()
    return frozenset(
        process
        for process in processes
        if process.pid in table and table[process.pid][1] == process.started_ticks
    )


def kill(processes: Iterable[Process]) -> None:
    """End `processes` at once; those that are gone already are passed over."""
    send(processes, signal.SIGKILL)


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Send a signal to `processes`; those that are gone already are passed over."""
    for process in alive(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def has_compiler(pids: Iterable[int]) -> bool:
    """Return whether a compiler or a linker runs under the processes `pids`."""
    names = set()
    for process in family(pids):
        with contextlib.suppress(OSError):
            names.add(_read(pathlib.Path(f"/proc/{process.pid}/comm")).strip())
    return not names.isdisjoint(_COMPILERS)


def _read_table() -> dict[int, tuple[int, int]]:
    """Return parent and start of every process that has not ended; zombies have."""
    table: dict[int, tuple[int, int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = _read(entry / "stat")
        except OSError:
            continue
        # The name, in parentheses, may hold blanks and parentheses of its own.
        fields = stat.rpartition(")")[2].split()
        if fields[0] not in ("Z", "X"):
            table[int(entry.name)] = (int(fields[1]), int(fields[19]))
    return table


def _read(file: pathlib.Path) -> str:
    # A process may call itself anything.
    return file.read_text(encoding="utf-8", errors="replace")
