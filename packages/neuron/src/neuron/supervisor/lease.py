"""The right of one request to use an engine."""

import asyncio
from types import TracebackType
from typing import Self

from cortex_core.errors import CortexError, RequestError
from cortex_core.harness import Engine


class NotAdmittedError(CortexError):
    """A request was refused before any engine saw it, so that it may be sent elsewhere.

    Args:
        refused: as the caller shall see it.
    """

    def __init__(self, refused: RequestError) -> None:
        super().__init__(refused.message)
        self.refused = refused


class Lease:
    """One admitted request, as an async context; whoever ends the engine can cut it.

    Args:
        engine: the engine that serves it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._error: RequestError | None = None
        self._scope = asyncio.timeout(None)
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._is_open = True
        if self._error is not None:
            self._expire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        try:
            await self._scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._error is None:
                raise
            raise self._error from None

    def cut(self, error: RequestError) -> None:
        """End the request with `error`, wherever it waits; the first of several counts."""
        if self._error is None:
            self._error = error
            if self._is_open:
                self._expire()

    def _expire(self) -> None:
        self._scope.reschedule(asyncio.get_running_loop().time())
