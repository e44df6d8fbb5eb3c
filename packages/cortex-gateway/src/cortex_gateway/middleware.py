"""What is put around the application by a setting."""

from collections.abc import Awaitable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import PermissionDeniedError

_SHOWN = (
    "request-id",
    "retry-after",
    "server-timing",
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

    Pages of other origins cannot operate the fleet either, however they ask.

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
        self._allowed = frozenset(origins)
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

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one scope.

        Raises:
            PermissionDeniedError: a page of a stranger wants to operate the fleet.
        """
        if scope["type"] == "http" and scope["method"] == "POST":
            self._check(scope)
        return self._open(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Keep pages that an operator only looks at from giving orders in the operator's network.

        A browser sends a plain POST of any page and merely hides the answer from it. It says whose
        page it is, which nobody else has to.
        """
        if not scope["path"].startswith("/admin/") or "*" in self._allowed:
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or origin in self._allowed:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise PermissionDeniedError(
                f"pages of {origin[:200]!r} may not operate this fleet; see gateway.cors_origins"
            )
