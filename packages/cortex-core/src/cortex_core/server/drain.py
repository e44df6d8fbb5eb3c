"""Going down without dropping what runs: refuse new requests, wait, then cut the rest."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import DrainingError
from cortex_core.server.exchange import Cut, Exchange, exchange_of

EXEMPT_PATHS = frozenset(("/health", "/livez", "/readyz", "/metrics", "/version"))
"""Answered to the last: whoever watches must see that we drain."""


class Drain:
    """Counts requests in flight, and ends them when the process goes down.

    One per process, made before the apps: health endpoints read `is_draining`.

    A request that is cut gets a `CancelledError`, and its `Exchange.cut` is `Cut.DRAIN`: a
    stream that has begun sends its error event and raises again. One that has not begun is
    answered with 503 by the guard.

    Args:
        retry_after_s: what refused callers are told.
        cut_grace_s: how long requests that were cut may take to say so.
    """

    def __init__(self, *, retry_after_s: float = 5.0, cut_grace_s: float = 2.0) -> None:
        self._retry_after_s = retry_after_s
        self._cut_grace_s = cut_grace_s
        self._live: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._limit: asyncio.Timeout | None = None
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        """Requests that are being served, health questions left out."""
        return len(self._live)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return `app` as plain ASGI that counts, and refuses while we drain."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in EXEMPT_PATHS:
                await app(scope, receive, send)
                return
            exchange = exchange_of(scope)
            if self.is_draining:
                exchange.is_last = True
                raise self.error()
            self._live.add(exchange)
            self._idle.clear()
            try:
                await app(scope, receive, send)
            finally:
                self._live.discard(exchange)
                if not self._live:
                    self._idle.set()

        return counted

    def error(self) -> DrainingError:
        """Return what a caller is told whose request is refused or cut."""
        return DrainingError(
            "this process is going down; try again", retry_after_s=self._retry_after_s
        )

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the running ones.

        Returns:
            How many were still running after `timeout_s` and were cut; 0 is a clean end.
        """
        self.is_draining = True
        for exchange in self._live:
            exchange.is_last = True
        if await self._is_idle_within(timeout_s):
            return 0
        cut = tuple(self._live)
        for exchange in cut:
            exchange.cancel(Cut.DRAIN)
        await self._is_idle_within(self._cut_grace_s)
        return len(cut)

    def hurry(self, timeout_s: float) -> None:
        """Let a drain that is under way wait at most `timeout_s` from now."""
        if self._limit is not None:
            limit = asyncio.get_running_loop().time() + timeout_s
            when = self._limit.when()
            self._limit.reschedule(limit if when is None else min(when, limit))

    async def _is_idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s) as self._limit:
                await self._idle.wait()
        except TimeoutError:
            return False
        finally:
            self._limit = None
        return True
