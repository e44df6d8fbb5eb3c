"""What is put around the application by a setting."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_SHOWN = (
    "request-id",
    "retry-after",
    "x-cortex-ignored",
    "x-cortex-load-ms",
    "x-cortex-model",
    "x-cortex-node",
    "x-cortex-queue-ms",
    "x-request-id",
)
"""Headers of an answer that a page may read, beside those that any page may."""

_REMEMBERED_S = 600
"""How long a browser need not ask again."""


class Origins:
    """`app` for pages of some origins, from within a browser; `*` is any page.

    Args:
        app: what is served.
        origins: as in `gateway.cors_origins`.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._open = app
        self.allow(origins)

    def allow(self, origins: Sequence[str]) -> None:
        """Let pages of exactly these origins in, from the next request on."""
        if not origins:
            self._open = self._app
            return
        self._open = CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_SHOWN,
            max_age=_REMEMBERED_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        await self._open(scope, receive, send)
