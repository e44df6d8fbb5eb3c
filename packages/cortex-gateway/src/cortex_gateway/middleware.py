"""What is put around the application by a setting."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

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


def across_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return `app`, which pages of `origins` may use from within a browser; `*` is any page."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=_SHOWN,
        max_age=_REMEMBERED_S,
    )
