"""Time, passed in: whoever waits or measures takes a `Clock`."""

import asyncio
import time
from email.utils import formatdate
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

    # As it is: a method around it would cost more than the clock, several times a request.
    now = staticmethod(time.monotonic)
    """Returns the monotonic time in seconds."""

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return time.time()  # noqa: TID251 - this is the clock that everybody else takes

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)


class HttpDate:
    """The time of day as answers have it (RFC 9110, section 5.6.7), written once a second."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._second = -1
        self._text = b""

    def text(self) -> bytes:
        """Return it as it is now."""
        now = int(self._clock.wall())
        if now != self._second:
            self._second = now
            self._text = formatdate(now, usegmt=True).encode()
        return self._text
