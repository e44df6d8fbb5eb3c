"""Requests that are sent when they are due, whatever became of those before."""

import asyncio
from collections.abc import Awaitable, Callable

from cortex_cli.bench.samples import Sample

Call = Callable[[float], Awaitable[Sample]]
"""Makes one request that is due at a time of the loop's clock."""

MOST_OPEN = 20_000
"""Requests that may be open at once; a load that comes to that has told what it can."""


async def open_loop(call: Call, rate_per_s: float, duration_s: float) -> list[Sample]:
    """Make requests at a constant rate and return what became of them, in the order of their end.

    A slow answer delays no later request, and its own time runs from when it was due: what a
    load generator that waits for answers leaves out is exactly what callers complain of.

    Args:
        call: makes one request; must not raise.
        rate_per_s: above 0.
        duration_s: in which requests are sent; their answers may take longer.
    """
    loop = asyncio.get_running_loop()
    samples: list[Sample] = []
    begin, due, number = loop.time(), 0.0, 0
    running: set[asyncio.Task[None]] = set()

    async def one(due_at: float) -> None:
        samples.append(await call(due_at))

    async with asyncio.TaskGroup() as tasks:
        while due < duration_s:
            await asyncio.sleep(max(0.0, begin + due - loop.time()))
            # All that are due by now, lest sleeping for each costs more than sending.
            while due < duration_s and begin + due <= loop.time():
                if len(running) >= MOST_OPEN:
                    late_s = loop.time() - begin - due
                    samples.append(Sample(outcome="not sent", sent_s=late_s, end_s=late_s))
                else:
                    task = tasks.create_task(one(begin + due))
                    running.add(task)
                    task.add_done_callback(running.discard)
                number += 1
                due = number / rate_per_s
    return samples
