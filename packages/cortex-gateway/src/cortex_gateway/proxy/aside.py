"""Work on large requests in a thread, so that others' streams go on meanwhile."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cortex_core.errors import OverloadedError

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES = 512 << 10
"""Of a body: some 10 ms of work where each turn of a conversation is translated. What is one call
of a library in C holds the interpreter in a thread as well, but is ten times as fast."""

_LARGE_THREADS = 2
"""They share one interpreter with the loop: more would not be faster, and it would wait longer."""

_LARGE_PENDING_BYTES = 256 << 20
"""Translated in five seconds or so, which is what those who are refused are told to wait."""

_DOCUMENT_THREADS = 2

_DOCUMENTS_PENDING = 16
"""A long one takes seconds."""

PATIENCE_S = 60.0
"""How long anybody waits for work that is to take seconds."""


class Threads:
    """Some threads for one kind of work, and a bounded line before them.

    A thread is made for each piece of work, which takes less than a hundredth of it; so nothing but
    its caller holds what waits, and no thread keeps the process from its end.

    Args:
        subject: what they work on, in the plural.
        threads: how many there are at most.
        most: size of the work that may be pending when more comes, that in the threads included.
        patience_s: how long a caller waits.
    """

    def __init__(
        self, subject: str, *, threads: int, most: int, patience_s: float = PATIENCE_S
    ) -> None:
        self.pending = 0
        """Size of the work that waits or is being done, also for callers who have left."""
        self._free = asyncio.Semaphore(threads)
        self._subject = subject
        self._most = most
        self._patience_s = patience_s

    async def run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns.

        To be cancelled leaves the line; work that has begun is done to its end, for nobody.

        Raises:
            OverloadedError: too much is pending, or it took too long.
        """
        if self.pending and self.pending + size > self._most:
            raise OverloadedError(f"too many {self._subject} are being read; try again")
        call = functools.partial(work, *args, **kwargs)
        limit = asyncio.timeout(self._patience_s)
        try:
            async with limit:
                return await self._begun(size, call)
        except TimeoutError:
            if not limit.expired():
                raise
            raise OverloadedError(
                f"{self._subject} take over {self._patience_s:.0f} s to be read; try again"
            ) from None

    async def _begun(self, size: int, call: Callable[[], T]) -> T:
        self.pending += size
        try:
            await self._free.acquire()
        except BaseException:
            self.pending -= size
            raise
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def end(result: T | None, error: BaseException | None) -> None:
            self.pending -= size
            self._free.release()
            if done.done():
                return
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]  # `None` only if `T` has it
            else:
                done.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001 - raised again where it is awaited
                error = raised
            # The loop may have ended, and with it whoever waited.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(end, result, error)

        try:
            threading.Thread(target=work, name=self._subject, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            end(None, error)
        return await done


class Aside:
    """The threads beside the loop: a slow document keeps no request waiting, nor they it."""

    def __init__(self) -> None:
        self.large = Threads("large requests", threads=_LARGE_THREADS, most=_LARGE_PENDING_BYTES)
        """For large requests, by bytes."""
        self.documents = Threads("documents", threads=_DOCUMENT_THREADS, most=_DOCUMENTS_PENDING)
        """For requests with documents, by number."""

    async def __call__(
        self, body_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what `work` returns; in a thread if it is about a large body.

        Args:
            body_bytes: size of the body.
            work: touches nothing that anybody else uses meanwhile.
            args: for `work`.
            kwargs: for `work`.

        Raises:
            OverloadedError: too many large bodies are being worked on.
        """
        if body_bytes < LARGE_BYTES:
            return work(*args, **kwargs)
        return await self.large.run(body_bytes, work, *args, **kwargs)
