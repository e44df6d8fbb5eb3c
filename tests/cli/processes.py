"""Waiting for processes that are not our children."""

import asyncio
import os
import select
from collections.abc import Iterable

PATIENCE_S = 10


class Watch:
    """Handles on processes, taken while they live, so that a reused id cannot mislead.

    Source: pidfd_open(2): the handle becomes readable when the process ends.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._handles = {pid: os.pidfd_open(pid) for pid in pids}

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def living(self) -> list[int]:
        """Return the ids of those that have not ended."""
        if not self._handles:
            return []
        ended, _, _ = select.select(list(self._handles.values()), [], [], 0)
        return [pid for pid, handle in self._handles.items() if handle not in ended]

    async def all_ended(self) -> None:
        """Wait until each has ended."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            for handle in self._handles.values():
                ended = asyncio.Event()
                loop.add_reader(handle, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(handle)


def children_of(pid: int) -> list[int]:
    """Return the ids of a process' children, engines' own processes included, any depth."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        direct = [int(child) for child in file.read().split()]
    return [found for child in direct for found in (child, *children_of(child))]
