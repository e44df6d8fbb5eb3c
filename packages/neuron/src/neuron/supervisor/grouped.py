"""Engines that are a part of a copy over several nodes, around those of a harness."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from cortex_core.errors import ConflictError, EngineError
from cortex_core.harness import Engine, EngineAnswer, EngineLoad, ModelInfo, Route
from cortex_core.ids import RequestId
from neuron.supervisor.waiting import first


class _Grouped:
    """Passes everything on to the engine inside, which does not sleep.

    Its peers' memory would have to go and come back with its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        info = engine.info
        capabilities = msgspec.structs.replace(info.capabilities, sleep=False)
        self._info = msgspec.structs.replace(info, capabilities=capabilities)

    @property
    def info(self) -> ModelInfo:
        """What it can do."""
        return self._info

    @property
    def failure(self) -> str | None:
        """Short reason why it is dead; `None` while it lives."""
        return self._engine.failure

    @property
    def process_ids(self) -> frozenset[int]:
        """Those on this node."""
        return self._engine.process_ids

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Answer one request."""
        return await self._engine.serve(route, body, request_id, urgency)

    async def check_request(self, route: Route, body: bytes) -> None:
        """Read a request and generate nothing."""
        await self._engine.check_request(route, body)

    def load(self) -> EngineLoad:
        """Return how busy it is."""
        return self._engine.load()

    async def failed(self) -> str:
        """Wait until it dies by itself and return the short reason."""
        return await self._engine.failed()

    async def is_compiling(self) -> bool:
        """Return whether a compiler that it started holds it up."""
        return await self._engine.is_compiling()

    async def kill(self, reason: str) -> None:
        """End its processes on this node at once; the others follow when it is closed."""
        await self._engine.kill(reason)

    async def check_answer(self) -> None:
        """Ask something whose answer is known."""
        await self._engine.check_answer()

    async def sleep(self, level: int) -> None:
        """Refuse."""
        raise ConflictError("a model over several nodes does not sleep; unload it")

    async def wake(self) -> None:
        """Refuse."""
        raise ConflictError("a model over several nodes does not sleep")

    async def close(self, timeout_s: float) -> None:
        """Free everything."""
        await self._engine.close(timeout_s)


class LeadingEngine(_Grouped):
    """The head of a copy: it serves, and is dead when any of its followers is lost.

    Args:
        engine: its own part.
        lost: done when a follower is lost, with the reason.
        end_followers: ends those that are left.
    """

    def __init__(
        self,
        engine: Engine,
        lost: asyncio.Future[str],
        end_followers: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(engine)
        self._lost = lost
        self._end_followers = end_followers
        self._is_closing = False

    @property
    def failure(self) -> str | None:
        """Short reason why it is dead, or not whole; `None` while it lives."""
        # A follower ends of the head's own end, too: that is the better reason.
        own = self._engine.failure
        if own is not None or self._is_closing or not self._lost.done():
            return own
        return self._lost.result()

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Answer one request, unless the copy is not whole any more."""
        failure = self.failure
        if failure is not None:
            raise EngineError(failure)
        return await super().serve(route, body, request_id, urgency)

    async def failed(self) -> str:
        """Wait until it dies by itself, or a follower does, and return the short reason."""
        await first(self._engine.failed(), asyncio.wait([self._lost]))
        return self.failure or "the engine stopped working"

    async def close(self, timeout_s: float) -> None:
        """Free everything, here and at the peers."""
        self._is_closing = True
        try:
            await self._engine.close(timeout_s)
        finally:
            await self._end_followers()


class FollowingEngine(_Grouped):
    """A part of a copy whose head is elsewhere.

    Args:
        engine: the part.
        settled: set when the head is up.
    """

    def __init__(self, engine: Engine, settled: asyncio.Event) -> None:
        super().__init__(engine)
        self._settled = settled

    async def check_answer(self) -> None:
        """Wait until the head is up: it has asked, and nothing moves on the devices any more."""
        await self._settled.wait()
