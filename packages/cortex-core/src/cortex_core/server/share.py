"""One listening socket for several processes, each of which gets its share of the callers."""

import asyncio
import contextlib
import logging
import mmap
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

logger = logging.getLogger(__name__)

PATIENCE_S = 0.02
"""How long a caller waits for a process that has fewer; then one that has more takes it."""

LOOK_S = 0.001
"""Between two looks at whether the others have caught up meanwhile."""

SLACK = 8
"""A process may have one caller more than another, and one of so many: those who come at once are
not to be taken one by one."""

MOST_LATE = 64
"""How many are taken at most that the others did not come for; begins with one, and doubles for as
long as they do not come."""

RETRY_S = 1.0
"""Before the next look, when this process has no descriptors left."""

_SLOT_BYTES = 8

_GONE = (1 << 63) - 1
"""What stands for a process that takes no callers: nobody leaves one to it."""


class Tally:
    """How many callers each process has, in memory that all of them see.

    Each writes what is its own, and reads the others'; what is read may be a moment old.

    Args:
        fd: of the memory; closed by the caller.
    """

    def __init__(self, fd: int) -> None:
        self._counts = memoryview(mmap.mmap(fd, 0)).cast("q")

    def leave(self, seat: int) -> None:
        """Note that a process takes no callers any more, or does not yet."""
        self._counts[seat] = _GONE

    def note(self, seat: int, callers: int) -> None:
        """Note how many callers a process has."""
        self._counts[seat] = callers

    def is_ahead(self, seat: int) -> bool:
        """Whether another process has fewer callers than this one, by more than a little."""
        mine = self._counts[seat]
        return mine > min(self._counts) + mine // SLACK


@contextlib.contextmanager
def open_memory(seats: int) -> Iterator[int]:
    """Yield a descriptor of the memory for a tally of so many processes, all of them gone."""
    fd = os.memfd_create("cortex-tally")
    try:
        os.ftruncate(fd, _SLOT_BYTES * seats)
        tally = Tally(fd)
        for seat in range(seats):
            tally.leave(seat)
        yield fd
    finally:
        os.close(fd)


class Seat:
    """One process's part in a tally.

    Args:
        tally: of all.
        number: of this one.
    """

    def __init__(self, tally: Tally, number: int) -> None:
        self._tally = tally
        self._number = number

    def note(self, callers: int) -> None:
        """See `Tally.note`."""
        self._tally.note(self._number, callers)

    def leave(self) -> None:
        """See `Tally.leave`."""
        self._tally.leave(self._number)

    @property
    def is_ahead(self) -> bool:
        """See `Tally.is_ahead`."""
        return self._tally.is_ahead(self._number)


class Acceptor:
    """Accepts callers, and leaves them to others for as long as those have fewer.

    The kernel wakes all processes and gives a caller to whoever comes first; a loop that takes all
    who wait, as asyncio's and libuv's do, has nearly all of a burst.

    Args:
        sock: listens, and does not block.
        seat: of this process.
        serve: serves one caller until it is gone; owns the socket.
        tasks: where callers are served.
    """

    def __init__(
        self,
        sock: socket.socket,
        seat: Seat,
        serve: Callable[[socket.socket], Awaitable[None]],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._sock = sock
        self._seat = seat
        self._serve = serve
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._callers: set[asyncio.Task[None]] = set()
        self._is_open = self._is_exhausted = False
        self._late = 1

    def open(self) -> None:
        """Begin to accept."""
        self._is_open = True
        self._seat.note(len(self._callers))
        self._loop.add_reader(self._sock, self._look)

    def close(self) -> None:
        """Accept no more."""
        self._is_open = False
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()
        self._seat.leave()

    async def end(self, limit_s: float) -> None:
        """Wait until the callers are gone, and cut off who is not by then."""
        if self._callers:
            _, late = await asyncio.wait(self._callers, timeout=limit_s)
            for task in late:
                task.cancel()

    def _look(self) -> None:
        """Take callers until this process is ahead, or none is left."""
        if not self._seat.is_ahead:
            self._late = 1
        while not self._seat.is_ahead:
            if not self._accept():
                return
        self._rest(LOOK_S, self._look_again, self._loop.time() + PATIENCE_S)

    def _look_again(self, until: float) -> None:
        """Go on when the others have caught up, or have left callers for too long."""
        if self._seat.is_ahead:
            if self._loop.time() < until:
                self._rest(LOOK_S, self._look_again, until)
                return
            late, self._late = self._late, min(2 * self._late, MOST_LATE)
            for _ in range(late):
                if not self._accept():
                    break
        if not self._is_exhausted:
            self._loop.add_reader(self._sock, self._look)

    def _recover(self) -> None:
        self._is_exhausted = False
        self._loop.add_reader(self._sock, self._look)

    def _rest(self, seconds: float, then: Callable[..., None], *args: float) -> None:
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(seconds, then, *args)

    def _accept(self) -> bool:
        """Take one caller, if there is one."""
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            logger.error("no caller can be accepted: %s", error)
            self._is_exhausted = True
            self._rest(RETRY_S, self._recover)
            return False
        sock.setblocking(False)
        task = self._tasks.create_task(self._run(sock))
        self._callers.add(task)
        self._seat.note(len(self._callers))
        task.add_done_callback(self._gone)
        return True

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._callers.discard(task)
        if self._is_open:
            self._seat.note(len(self._callers))

    async def _run(self, sock: socket.socket) -> None:
        try:
            await self._serve(sock)
        except* OSError:
            # It left before it was served.
            sock.close()
        except* Exception:
            logger.exception("a caller could not be served")
            sock.close()


@contextlib.asynccontextmanager
async def accepting(
    sock: socket.socket,
    seat: Seat,
    serve: Callable[[socket.socket], Awaitable[None]],
    *,
    graceful_s: float,
) -> AsyncIterator[None]:
    """Accept callers while the context is open; see `Acceptor`.

    Args:
        sock: listens.
        seat: of this process.
        serve: serves one caller until it is gone; owns the socket.
        graceful_s: how long callers may take to be gone after that.
    """
    sock.setblocking(False)
    async with asyncio.TaskGroup() as tasks:
        acceptor = Acceptor(sock, seat, serve, tasks)
        acceptor.open()
        try:
            yield
        finally:
            acceptor.close()
        await acceptor.end(graceful_s)
