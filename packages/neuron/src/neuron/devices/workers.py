"""One worker per device: a mailbox that is worked off one message after the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from cortex_core.ids import DeviceIndex
from neuron.ports import Held


class _Hold:
    """A message: stop here until its sender is done."""

    def __init__(self, work: str) -> None:
        self.work = work
        self.granted = asyncio.Event()
        self.ended = asyncio.Event()


class DeviceWorker:
    """The worker of one device."""

    def __init__(self, index: DeviceIndex) -> None:
        self.index = index
        self._mailbox: asyncio.Queue[_Hold] = asyncio.Queue()
        self._held: tuple[_Hold, float] | None = None

    @property
    def name(self) -> str:
        """As in logs: `cuda-dev-0`."""
        return f"cuda-dev-{self.index}"

    async def run(self) -> None:
        """Work the mailbox off until cancelled."""
        while True:
            hold = await self._mailbox.get()
            self._held = hold, asyncio.get_running_loop().time()
            hold.granted.set()
            await hold.ended.wait()
            self._held = None

    @property
    def held(self) -> Held | None:
        """Who has the device now."""
        if self._held is None or self._held[0].ended.is_set():
            return None
        hold, since = self._held
        return Held(work=hold.work, held_s=asyncio.get_running_loop().time() - since)

    @property
    def waiting(self) -> int:
        """How many wait in the mailbox; who left before its turn counts until then."""
        return self._mailbox.qsize()

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for all earlier holders, and keep the device while the context is open."""
        # Whoever holds a device is a procedure, and its name says what it does.
        task = asyncio.current_task()
        hold = _Hold("" if task is None else task.get_name())
        self._mailbox.put_nowait(hold)
        try:
            await hold.granted.wait()
            yield
        finally:
            # A sender that left before its turn makes the worker pass over the message.
            hold.ended.set()


class DeviceWorkers:
    """All workers of a node.

    Args:
        devices: indices of the devices; without any, nothing is ever waited for.
        tasks: owns the workers.
    """

    def __init__(self, devices: Iterable[DeviceIndex], tasks: asyncio.TaskGroup) -> None:
        self._workers = {index: DeviceWorker(index) for index in sorted(devices)}
        self._tasks = [
            tasks.create_task(worker.run(), name=worker.name) for worker in self._workers.values()
        ]

    @contextlib.asynccontextmanager
    async def hold(self, devices: tuple[DeviceIndex, ...]) -> AsyncIterator[None]:
        """Hold a group of devices.

        All groups are taken in index order, so that two of them can never wait for each other.
        """
        async with contextlib.AsyncExitStack() as stack:
            for index in sorted(set(devices)):
                await stack.enter_async_context(self._workers[index].hold())
            yield

    def held(self, device: DeviceIndex) -> Held | None:
        """Return who has a device now, at once; `None` when its worker waits for work."""
        return self._workers[device].held

    def waiting(self, device: DeviceIndex) -> int:
        """Return how many wait for a device."""
        return self._workers[device].waiting

    def close(self) -> None:
        """Stop the workers; nobody may hold a device any more."""
        for task in self._tasks:
            task.cancel()
