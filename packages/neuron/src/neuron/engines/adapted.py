"""An adapter as a model of its own: a view of the engine of its base, which has both."""

from collections.abc import Awaitable, Callable

import msgspec

from cortex_core.errors import ConflictError
from cortex_core.harness import Engine, EngineAnswer, EngineLoad, ModelInfo, Route
from cortex_core.ids import ModelId, RequestId


class AdapterEngine:
    """Serves through the engine of the base; see `cortex_core.harness.Engine`.

    It lives and dies with that engine, holds no memory of its own that anybody could measure,
    and closing it leaves the base as it was.

    Args:
        model: id of the adapter.
        base: the engine that it was added to.
        check: has the adapter answer the neuron's own question, and raises if it does not.
        remove: takes the adapter off the engine, if that still lives.
    """

    def __init__(
        self,
        model: ModelId,
        base: Engine,
        *,
        check: Callable[[], Awaitable[None]],
        remove: Callable[[], Awaitable[None]],
    ) -> None:
        self._model = model
        self._base = base
        self._check = check
        self._remove = remove
        self._is_closed = False

    @property
    def info(self) -> ModelInfo:
        """What the base can do, but for sleep: that is the base's to do."""
        info = self._base.info
        return msgspec.structs.replace(
            info,
            capabilities=msgspec.structs.replace(info.capabilities, sleep=False),
            vram_bytes=0,
            sleep_bytes=None,
        )

    @property
    def failure(self) -> str | None:
        """Why the engine is dead; `None` while it lives."""
        return self._base.failure

    @property
    def process_ids(self) -> frozenset[int]:
        """None: those of the engine are its base's."""
        return frozenset()

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Answer one request; its body names the adapter, which is how the engine knows."""
        return await self._base.serve(route, body, request_id, urgency)

    async def check_request(self, route: Route, body: bytes) -> None:
        """Read a request as `serve` would."""
        await self._base.check_request(route, body)

    def load(self) -> EngineLoad:
        """Return how busy the engine is, with whatever model."""
        return self._base.load()

    async def failed(self) -> str:
        """Wait until the engine dies by itself and return the short reason."""
        return await self._base.failed()

    async def is_compiling(self) -> bool:
        """Return whether a compiler holds the engine up."""
        return await self._base.is_compiling()

    async def kill(self, reason: str) -> None:
        """End the engine: one that makes no step for an adapter makes none for anybody."""
        await self._base.kill(reason)

    async def check_answer(self) -> None:
        """Have the adapter answer."""
        await self._check()

    async def sleep(self, level: int) -> None:
        """Refuse."""
        raise ConflictError(f"{self._model!r} is an adapter and does not sleep")

    async def wake(self) -> None:
        """Refuse."""
        raise ConflictError(f"{self._model!r} is an adapter and does not sleep")

    async def close(self, timeout_s: float) -> None:
        """Take the adapter off the engine; its requests have gone, or go on with the base."""
        if not self._is_closed:
            self._is_closed = True
            await self._remove()
