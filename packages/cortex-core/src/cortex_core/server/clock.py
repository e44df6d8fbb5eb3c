"""Time, passed in: whoever waits or measures takes a `Clock`."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where a process gets its time from."""

    def now(self) -> float:
        """Return seconds on a scale that never jumps; its zero means nothing."""

    def wall(self) -> float:
        """Return seconds since the epoch, for what people and callers read."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; at once, after the others had a turn, for 0 or less."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return time.time()  # noqa: TID251 - this is the clock that everybody else takes

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)
