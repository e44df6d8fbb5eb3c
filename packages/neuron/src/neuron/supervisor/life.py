"""One life of a replica: from the load that began it until its engine is gone."""

import asyncio
import inspect

import msgspec

from cortex_core.errors import RequestError
from cortex_core.harness import Engine
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.recovery import FailureKind
from neuron.lifecycle.replica import ReplicaState
from neuron.supervisor.lease import Door, Lease
from neuron.supervisor.waiting import first


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a load was not possible, of which nothing stays but this."""

    reason: str
    kind: FailureKind


class Life:
    """What belongs to one life; only the supervisor changes it.

    Args:
        state: where it begins.
    """

    def __init__(self, state: ReplicaState) -> None:
        self.state = state
        self.engine: Engine | None = None
        self.tasks: list[asyncio.Task[None]] = []
        """The load, then the watch over the engine; a sleep or a wake beside it."""
        self.ending: asyncio.Task[None] | None = None
        """The unload, or the disposal of a dead engine."""
        self.hasting: list[asyncio.Task[None]] = []
        """Further commands that want a shorter drain."""
        self.has_reserved = False
        """Whether its memory is in the budget."""
        self.is_shutting_down = False
        """Whether the whole neuron goes down, which is another reason to be unloaded."""
        self.loaded = _future()
        """Ends when the load or the latest wake does, with its error if it had one."""
        self.asleep = _future()
        """Ends when the latest sleep has begun, with its error if it did not."""
        self.hastened = asyncio.Event()
        """Set when its drain is to end now."""
        self.gone = asyncio.Event()
        """Set when its engine is closed and its memory free."""
        self.changed = asyncio.Event()
        """Set at the next change, and replaced then."""
        self.accepted = asyncio.Event()
        """Set when its load is found possible, or has ended."""
        self.refusal: Refusal | None = None
        """Why its load was not possible."""
        self.door = Door()
        """Through which its requests go."""
        self._leases: set[Lease] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def model(self) -> ModelId:
        """Whose life it is."""
        return self.state.asked.model

    def cancel_tasks(self) -> None:
        """Stop what is done with its engine, but for the task that asks for it."""
        for task in self.tasks:
            if task is not asyncio.current_task():
                _cancel(task)

    def end_as_failed(self, error: str | None) -> None:
        """Be over while its dead engine is disposed of: another life may have taken its place."""
        self.state = msgspec.structs.replace(self.state, status=ReplicaStatus.FAILED, error=error)

    def begin_sleep(self) -> None:
        """Have `asleep` and `hastened` stand for the sleep that begins."""
        self.asleep = _future()
        self.hastened = asyncio.Event()

    def begin_wake(self) -> None:
        """Have `loaded` and `accepted` stand for the wake that begins."""
        self.loaded = _future()
        self.accepted = asyncio.Event()
        self.hastened = asyncio.Event()

    def add(self, lease: Lease) -> None:
        """Count a request in."""
        self._leases.add(lease)
        self._idle.clear()

    def remove(self, lease: Lease) -> None:
        """Count a request out."""
        self._leases.discard(lease)
        if not self._leases:
            self._idle.set()

    def cut(self, error: RequestError) -> None:
        """End all requests with `error`."""
        for lease in tuple(self._leases):
            lease.cut(error)

    def die(self, error: RequestError) -> None:
        """End all requests because the engine is dead."""
        for lease in tuple(self._leases):
            lease.die(error)

    async def idle(self) -> None:
        """Wait until no request is left."""
        await self._idle.wait()

    async def drained(self) -> None:
        """Wait until no request is left, or nobody wants to wait for them any more."""
        if not self._idle.is_set() and not self.hastened.is_set():
            await first(self._idle.wait(), self.hastened.wait())

    async def until_settled(self) -> None:
        """Wait until it is not `unloading` any more: asleep, or gone."""
        while self.state.status is ReplicaStatus.UNLOADING and not self.gone.is_set():
            await first(self.gone.wait(), self.changed.wait())

    def fail_loaded(self, error: RequestError) -> None:
        """End the load or wake with `error` unless it has ended."""
        if not self.loaded.done():
            self.loaded.set_exception(error)
        self.accepted.set()

    def fail_asleep(self, error: RequestError) -> None:
        """End the sleep with `error` unless it has begun."""
        if not self.asleep.done():
            self.asleep.set_exception(error)


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task, but let it begin: only then does it tell those who wait for its end."""
    work = task.get_coro()
    if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
        # Its first step has its turn already, and comes before this one.
        asyncio.get_running_loop().call_soon(task.cancel)
    else:
        task.cancel()


def _future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(_retrieve)
    return future


def _retrieve(future: asyncio.Future[None]) -> None:
    # Nobody has to wait; an error must not be reported as forgotten then.
    if not future.cancelled():
        future.exception()
