"""Replacing the engine processes of a node: what they have lost track of comes back that way."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

from cortex_core.errors import ConflictError, RecoveringError, RequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts
from neuron.supervisor.waiting import within

logger = logging.getLogger(__name__)


_WANTED = (ReplicaStatus.LOADED, ReplicaStatus.RECOVERING)
"""What is brought back; whatever was wrong with an engine, a new process may cure it."""


class Recycling:
    """One recycling at a time, for the whole node or for some of its devices.

    Args:
        parts: what it needs.
        lives: returns all models, those whose dead engine is not gone yet included.
        unload: unloads a model and returns when its memory is free.
        load: starts to load a model, whatever the node's marks say; refuses when the neuron
            goes down.
    """

    def __init__(
        self,
        parts: Parts,
        lives: Callable[[], Iterable[Life]],
        unload: Callable[[ModelId, float], Awaitable[None]],
        load: Callable[[ModelSpec], Life],
    ) -> None:
        self._parts = parts
        self._lives = lives
        self._unload = unload
        self._load = load
        self._ended: asyncio.Future[None] | None = None
        self._devices: frozenset[DeviceIndex] | None = None
        self._task: asyncio.Task[None] | None = None
        self.models: frozenset[ModelId] = frozenset()
        """Those that will be back in a moment."""
        self.cycles = 0
        """Engines that were closed since all were replaced last."""

    @property
    def is_running(self) -> bool:
        """Whether engines are being replaced now."""
        return self._ended is not None

    async def wait(self, timeout_s: float) -> None:
        """Wait until nothing is being replaced.

        Raises:
            RecoveringError: not in time.
        """
        ended = self._ended
        if ended is not None and not await within(
            self._parts.clock, timeout_s, asyncio.wait([ended])
        ):
            raise RecoveringError("the engines of this neuron are being replaced; try again")

    async def recycle(self, devices: frozenset[DeviceIndex] | None = None) -> None:
        """Drain and unload what is loaded, and bring the same models back in new processes.

        Models that sleep are unloaded and stay so. Calls that come together are one.

        Args:
            devices: whose models are meant; `None` means all, and all that outlives engines.

        Raises:
            ConflictError: a model is being loaded or woken.
            RequestError: why one of the models did not come back.
        """
        while self._ended is not None and self._devices not in (None, devices):
            # It does less than is wanted here.
            await asyncio.wait([self._ended])
        if self._ended is None:
            lives = self._chosen(devices)
            self._ended = asyncio.get_running_loop().create_future()
            self._ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            self._devices = devices
            self.models = frozenset(life.model for life in lives)
            # Now: an engine that dies in the next moment gives its place to another life.
            # A part of another node's copy comes back when that node asks for it.
            again = [
                life.state.asked
                for life in lives
                if life.state.status in _WANTED and not life.state.asked.is_follower
            ]
            work = self._run(lives, again, devices, self._ended)
            self._task = self._parts.spawn(work, "recycle")
        # Shielded: a caller that leaves must not take the engines of others with it.
        await asyncio.shield(self._ended)

    def _chosen(self, devices: frozenset[DeviceIndex] | None) -> list[Life]:
        lives = [
            life
            for life in self._lives()
            if devices is None or devices.intersection(life.state.devices)
        ]
        for life in lives:
            if life.state.status is ReplicaStatus.LOADING:
                raise ConflictError(f"{life.model!r} is being loaded; recycle when that is done")
        return [life for life in lives if life.state.status is not ReplicaStatus.FAILED]

    async def _run(
        self,
        lives: Collection[Life],
        again: Collection[ModelSpec],
        devices: frozenset[DeviceIndex] | None,
        ended: asyncio.Future[None],
    ) -> None:
        error: RequestError | None = None
        logger.info("recycling", extra={"models": sorted(self.models)})
        try:
            await self._end(lives)
            if devices is None:
                for harness in self._parts.harnesses.values():
                    await harness.recycle()
                self.cycles = 0
            self._parts.memory.forget_leaks(devices)
            error = await self._bring_back(again)
        finally:
            self.models = frozenset()
            self._ended = None
            if error is not None:
                ended.set_exception(error)
            elif not ended.done():
                ended.set_result(None)
        self._parts.metrics.recycles.inc()

    async def _end(self, lives: Collection[Life]) -> None:
        drain_s = self._parts.settings.drain_timeout_s
        async with asyncio.TaskGroup() as tasks:
            for life in lives:
                tasks.create_task(_gone(life, self._unload, drain_s))
        # Engines that died may not be gone yet.
        for life in self._lives():
            if life.ending is not None:
                await life.gone.wait()

    async def _bring_back(self, specs: Iterable[ModelSpec]) -> RequestError | None:
        """Load `specs` one after the other, and return the first error."""
        first: RequestError | None = None
        for spec in specs:
            try:
                await asyncio.shield(self._load(spec).loaded)
            except RequestError as error:
                first = first or error
        return first


async def _gone(
    life: Life, unload: Callable[[ModelId, float], Awaitable[None]], drain_s: float
) -> None:
    if not life.gone.is_set():
        await unload(life.model, drain_s)
