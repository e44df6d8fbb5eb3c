"""Work on large requests in a thread, so that others' streams go on meanwhile."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES = 512 << 10
"""Of a body: some 10 ms of work where each turn of a conversation is translated. What is one call
of a library in C holds the interpreter in a thread as well, but is ten times as fast."""


async def aside(body_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` returns; in a thread if it is about a large body.

    Args:
        body_bytes: size of the body.
        work: touches nothing that anybody else uses meanwhile.
        args: for `work`.
        kwargs: for `work`.
    """
    if body_bytes < LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
