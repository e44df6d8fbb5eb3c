"""Waiting with a bound, on a clock that tests can turn."""

import asyncio
from collections.abc import Coroutine

from cortex_core.server.clock import Clock

Wait = Coroutine[object, object, object]


async def within(clock: Clock, timeout_s: float, wait: Wait) -> bool:
    """Wait for `wait` for at most `timeout_s`, and say whether it ended in time.

    `wait` is cancelled when it did not; it must not fail.
    """
    return await first(wait, clock.sleep(timeout_s)) == 0


async def first(*waits: Wait) -> int:
    """Wait until one of `waits` ends, cancel the others, and return its place.

    The earliest place wins when several have ended. None of them may fail.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(wait) for wait in waits]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        ended = [task.done() for task in running]
        for task in running:
            task.cancel()
    return ended.index(True)
