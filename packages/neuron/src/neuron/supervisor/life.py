"""One life of a replica: from the load that began it until its engine is gone."""

import asyncio

from cortex_core.errors import RequestError
from cortex_core.harness import Engine
from cortex_core.ids import ModelId
from neuron.lifecycle.replica import ReplicaState
from neuron.supervisor.lease import Lease
from neuron.supervisor.waiting import first


class Life:
    """What belongs to one life; only the supervisor changes it.

    Args:
        state: where it begins.
    """

    def __init__(self, state: ReplicaState) -> None:
        self.state = state
        self.engine: Engine | None = None
        self.tasks: list[asyncio.Task[None]] = []
        """The load, then the watch over the engine."""
        self.ending: asyncio.Task[None] | None = None
        """The unload, or the disposal of a dead engine."""
        self.hasting: list[asyncio.Task[None]] = []
        """Further unloads that want a shorter drain."""
        self.has_reserved = False
        """Whether its memory is in the budget."""
        self.is_shutting_down = False
        """Whether the whole neuron goes down, which is another reason to be unloaded."""
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends when the load does, with its error if it had one."""
        self.loaded.add_done_callback(_retrieve)
        self.hastened = asyncio.Event()
        """Set when its drain is to end now."""
        self.gone = asyncio.Event()
        """Set when its engine is closed and its memory free."""
        self.changed = asyncio.Event()
        """Set at the next change, and replaced then."""
        self.accepted = asyncio.Event()
        """Set when its load is found possible, or has ended."""
        self.refused_reason: str | None = None
        """Why its load was not possible."""
        self._leases: set[Lease] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def model(self) -> ModelId:
        """Whose life it is."""
        return self.state.asked.model

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

    async def idle(self) -> None:
        """Wait until no request is left."""
        await self._idle.wait()

    async def drained(self) -> None:
        """Wait until no request is left, or nobody wants to wait for them any more."""
        if not self._idle.is_set() and not self.hastened.is_set():
            await first(self._idle.wait(), self.hastened.wait())

    def fail_loaded(self, error: RequestError) -> None:
        """End the load with `error` unless it has ended."""
        if not self.loaded.done():
            self.loaded.set_exception(error)


def _retrieve(loaded: asyncio.Future[None]) -> None:
    # Nobody has to wait for a load; its error must not be reported as forgotten then.
    if not loaded.cancelled():
        loaded.exception()
