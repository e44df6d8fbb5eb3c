"""The one thread that talks to the driver, so that nobody else ever waits for it."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DriverThread:
    """Runs blocking calls one after the other, away from the event loop.

    The thread is a daemon: a driver that never answers must not keep the process alive, which
    an executor's thread would.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="device-driver", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns, in its turn; cancelling does not stop it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # no error, so a result

        def work() -> None:
            result, failure = None, None
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - handed to the caller whole
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, failure)

        self._calls.put(work)
        return await answer

    def close(self, last_call: Callable[[], None]) -> None:
        """Let the thread end after the calls that it has and `last_call`; nobody waits."""
        self._calls.put(last_call)
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
