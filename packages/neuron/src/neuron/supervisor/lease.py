"""The right of one request to use an engine, and the wait for it."""

import asyncio
from types import TracebackType
from typing import Self

import msgspec

from cortex_core.errors import CortexError, RequestError
from cortex_core.harness import Engine, Route
from cortex_core.routing.queue import Priority
from neuron.lifecycle.line import Line


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A request as admission sees it."""

    caller: str = ""
    """Whose it is, for the shares."""
    priority: Priority = Priority.NORMAL
    route: Route = Route.CHAT_COMPLETIONS
    body: bytes = b""


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
        self._has_died = False
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

    @property
    def has_died(self) -> bool:
        """Whether the engine died while it had the request."""
        return self._has_died or self.engine.failure is not None

    def die(self, error: RequestError) -> None:
        """End the request because its engine is dead."""
        self._has_died = True
        self.cut(error)

    def cut(self, error: RequestError) -> None:
        """End the request with `error`, wherever it waits; the first of several counts."""
        if self._error is None:
            self._error = error
            if self._is_open:
                self._expire()

    def _expire(self) -> None:
        self._scope.reschedule(asyncio.get_running_loop().time())


class Door:
    """The requests of one life before and with its engine.

    Who waits has a future that ends with its place, or with why there is none.
    """

    def __init__(self) -> None:
        self.line = Line()
        self.waiters: dict[str, asyncio.Future[None]] = {}
        """By ticket."""
        self.looking: asyncio.Task[None] | None = None
        """Looks for room again while the engine is pressed."""

    def stand(self, ticket_id: str) -> asyncio.Future[None]:
        """Return what a request that is in the queue waits for."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters[ticket_id] = future
        return future

    def grant(self, ticket_id: str) -> None:
        """Tell a request that it has its place."""
        future = self.waiters.pop(ticket_id, None)
        if future is not None:
            future.set_result(None)

    def refuse(self, ticket_id: str, error: RequestError) -> None:
        """Tell one that waits that it waits for nothing, unless it has its place by now."""
        future = self.waiters.pop(ticket_id, None)
        if future is not None:
            self.line.drop(ticket_id)
            future.set_exception(NotAdmittedError(error))

    def send_away(self, refused: RequestError) -> None:
        """Tell all that wait that nothing will come of it here."""
        waiters, self.waiters = self.waiters, {}
        for ticket_id, future in waiters.items():
            self.line.drop(ticket_id)
            # One for each: who raises it writes into it.
            future.set_exception(NotAdmittedError(refused))
            # Its request may have left in the same moment.
            future.exception()
