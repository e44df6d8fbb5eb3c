"""A time limit that is set far more often than it is reached."""

import asyncio
from collections.abc import Callable


class Deadline:
    """One timer for all that may take too long: it looks at the deadline of the moment.

    To set a timer anew with each request costs more than to be woken once for nothing.
    """

    __slots__ = ("_loop", "_then", "_timer", "_timer_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.at = self._timer_at = 0.0
        """Seconds by the loop's clock. Whoever puts it off with every piece of a body may do so here,
        without a call; sooner it comes only with `set`."""
        self._timer: asyncio.TimerHandle | None = None
        self._then: Callable[[], object] | None = None

    def set(self, seconds: float, then: Callable[[], object]) -> None:
        """Have `then` called in so many seconds, in place of what was to be called before."""
        self._then = then
        self.at = at = self._loop.time() + seconds
        # Most often there is a timer that goes off before, and finds out that it is too early.
        if self._timer is None or at < self._timer_at:
            self._start()

    def lift(self) -> None:
        """Have nothing called until it is set again."""
        self._then = None

    def end(self) -> None:
        """Have nothing called any more, and keep nothing."""
        self._then = None
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self.at
        self._timer = self._loop.call_at(self.at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._then is None:
            return
        if self._loop.time() < self.at:
            self._start()
        else:
            self._then()
