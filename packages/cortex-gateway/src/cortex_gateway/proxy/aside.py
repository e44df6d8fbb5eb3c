"""Work on large requests in a thread, so that others' streams go on meanwhile."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


class Threads:
    """Some threads for one kind of work, and a bounded line before them.

    Args:
        subject: what they work on, in the plural.
        threads: how many; they are started when they are needed.
        most: size of the work that may be pending when more comes, that in the threads included.
    """

    def __init__(self, subject: str, *, threads: int, most: int) -> None:
        self.pending = 0
        """Size of the work whose callers wait."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=subject)
        self._subject = subject
        self._most = most

    async def run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns.

        To be cancelled leaves the line; work that has begun is done to its end, for nobody.

        Raises:
            OverloadedError: too much is pending.
        """
        if self.pending and self.pending + size > self._most:
            raise OverloadedError(f"too many {self._subject} are being read; try again")
        loop, call = asyncio.get_running_loop(), functools.partial(work, *args, **kwargs)
        self.pending += size
        try:
            return await loop.run_in_executor(self._executor, call)
        finally:
            self.pending -= size

    def close(self) -> None:
        """Take no more work, and let go of what has not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)


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

    def close(self) -> None:
        """Let the threads end."""
        self.large.close()
        self.documents.close()
