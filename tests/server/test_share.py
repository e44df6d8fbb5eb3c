"""Several processes accept on one socket, and each has its share of the callers."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from cortex_core.server.drain import Drain
from cortex_core.server.listen import ListeningSocket, open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.share import Acceptor, Seat, Tally, accepting, open_memory
from cortex_core.server.stack import protect
from tests.server.apps import hello

CALLERS = 40


@contextlib.contextmanager
def seats(count: int) -> Iterator[list[Seat]]:
    with open_memory(count) as memory:
        yield [Seat(Tally(memory), number) for number in range(count)]


def listener() -> ListeningSocket:
    found = open_listener("127.0.0.1:0")
    found.socket.setblocking(False)
    return found


async def call(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


class Count:
    """How many callers came to any house."""

    def __init__(self) -> None:
        self._callers = 0
        self._news = asyncio.Event()

    def add(self) -> None:
        """Count one more."""
        self._callers += 1
        self._news.set()

    async def reach(self, count: int) -> None:
        """Return when there are so many."""
        async with asyncio.timeout(5):
            while self._callers < count:
                self._news.clear()
                await self._news.wait()


class House:
    """Serves callers until the end, and counts those that came."""

    def __init__(self, total: Count) -> None:
        self.callers = 0
        self._total = total
        self.end = asyncio.Event()

    async def serve(self, sock: socket.socket) -> None:
        self.callers += 1
        self._total.add()
        with sock:
            await self.end.wait()


def test_who_is_not_there_is_left_nothing() -> None:
    """Ours: a process that has not begun, or has ended, is nobody to wait for."""
    with seats(3) as (first, second, _):
        first.note(5)
        seen = [first.is_ahead]
        second.note(4)
        seen.append(first.is_ahead)
        second.leave()
        seen.append(first.is_ahead)

    assert seen == [False, True, False]


async def test_callers_are_shared_evenly() -> None:
    """Ours: however the kernel wakes those who listen, each caller goes to who has fewer."""
    total = Count()
    one, two = House(total), House(total)
    api = listener()
    with seats(2) as (left, right), contextlib.closing(api), api.socket.dup() as other:
        async with (
            accepting(api.socket, left, one.serve, graceful_s=5),
            # Of one loop the kernel prefers the one that began last.
            accepting(other, right, two.serve, graceful_s=5),
        ):
            callers = []
            for number in range(CALLERS):
                callers.append(await call(api.port))
                await total.reach(number + 1)
            for house in (one, two):
                house.end.set()
        for caller in callers:
            caller.close()

    # A loop that stood still may have let the other's patience end.
    assert min(one.callers, two.callers) >= CALLERS // 2 - 5


async def test_callers_of_a_process_that_stands_still_are_taken_by_others() -> None:
    """Ours: nobody waits for long on a process that has fewer callers and does not come."""
    total = Count()
    house, api = House(total), listener()
    with seats(2) as (ours, stands_still), contextlib.closing(api):
        stands_still.note(0)
        async with accepting(api.socket, ours, house.serve, graceful_s=5):
            callers = [await call(api.port) for _ in range(CALLERS)]
            await total.reach(CALLERS)
            house.end.set()
        for caller in callers:
            caller.close()

    assert house.callers == CALLERS


async def test_a_failure_with_one_caller_is_no_other_ones() -> None:
    """Ours: it is logged, and the caller is cut off."""
    failures: list[Exception] = [ConnectionResetError(), RuntimeError("a bug")]
    api = listener()

    async def fail(sock: socket.socket) -> None:
        raise failures.pop()

    with seats(1) as (seat,), contextlib.closing(api):
        async with accepting(api.socket, seat, fail, graceful_s=5), asyncio.timeout(5):
            for _ in range(2):
                with await call(api.port) as caller:
                    assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""

    assert not failures


async def test_no_descriptor_left_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: the loop does not spin, and goes on when there are some again."""
    monkeypatch.setattr("cortex_core.server.share.RETRY_S", 0.01)
    total = Count()
    house, api = House(total), listener()

    class Exhausted:
        """A listening socket that fails once."""

        has_failed = False

        def accept(self) -> tuple[socket.socket, object]:
            if not self.has_failed:
                self.has_failed = True
                raise OSError(24, "Too many open files")
            return api.socket.accept()

        def fileno(self) -> int:
            return api.socket.fileno()

    with seats(1) as (seat,), contextlib.closing(api):
        async with asyncio.TaskGroup() as tasks:
            acceptor = Acceptor(Exhausted(), seat, house.serve, tasks)  # type: ignore[arg-type]  # in its place
            acceptor.open()
            with await call(api.port):
                await total.reach(1)
            house.end.set()
            acceptor.close()

    assert "Too many open files" in caplog.text


async def test_a_server_with_a_seat_answers_and_ends_in_good_order() -> None:
    """Ours: what is accepted here is served as what Hypercorn accepts."""
    api, shutdown, drain = open_listener("127.0.0.1:0"), Shutdown(), Drain()
    with seats(1) as (seat,):
        served = Listener(app=protect(hello, drain=drain), socket=api, keep_alive_s=5.0, seat=seat)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(
                serve([served], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=5)
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert len(served.connections) == 1
            shutdown.ask()
            await reader.read()
            writer.close()

    assert not served.connections
