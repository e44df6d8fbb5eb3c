"""The short way to the paths that models are asked on."""

from collections.abc import Awaitable

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_gateway.proxy.proxy import Endpoint


class Direct:
    """`app`, but a POST to a path of the proxy's goes straight there.

    Starlette looks through its routes one after another, and puts objects of its own around each
    request, of which the proxy needs none. All else is Starlette's, the other methods of these
    paths too.

    Args:
        app: with all routes.
    """

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._endpoints: dict[str, ASGIApp] = {
            route.path: route.endpoint
            for route in app.routes
            if isinstance(route, Route) and isinstance(route.endpoint, Endpoint)
        }

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one scope."""
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._endpoints.get(scope["path"], app)
        return app(scope, receive, send)
