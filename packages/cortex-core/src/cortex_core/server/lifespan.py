"""The life of an app around its requests, with failures that stop the process."""

import asyncio
import logging
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class Lifespan:
    """Passes requests on, and makes the lifespan protocol strict.

    An app that raises at start should not be served. Hypercorn takes the exception for an app
    without lifespan and serves it. An app that really has none is started and ended for it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.has_started = asyncio.Event()
        self.failure: Exception | None = None
        """What the app raised at start or at its end."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one scope."""
        # A request costs one coroutine less.
        return (self._live if scope["type"] == "lifespan" else self._app)(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = 0

        async def asking() -> Message:
            nonlocal asked
            message = await receive()
            asked += 1
            return message

        async def telling(message: Message) -> None:
            # Whether it failed is told by what the app raises, which has a better message:
            # Starlette's is a whole traceback.
            if message["type"].endswith(".failed"):
                self.failure = RuntimeError(message.get("message") or "the app says no more")
                return
            if message["type"] == "lifespan.startup.complete":
                self.has_started.set()
            await send(message)

        try:
            await self._app(scope, asking, telling)
        except Exception as error:  # noqa: BLE001 - the process's edge: nobody is above
            self.failure = error
        await self._conclude(asked, receive, send)

    async def _conclude(self, asked: int, receive: Receive, send: Send) -> None:
        """Say what the app left unsaid."""
        if self.failure is not None:
            stage = "shutdown" if self.has_started.is_set() else "startup"
            logger.error("%s failed", stage, exc_info=self.failure)
            kind = "shutdown.complete" if self.has_started.is_set() else "startup.failed"
            await send({"type": f"lifespan.{kind}", "message": ""})
            return
        if not self.has_started.is_set():
            if asked == 0:
                await receive()
            self.has_started.set()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
