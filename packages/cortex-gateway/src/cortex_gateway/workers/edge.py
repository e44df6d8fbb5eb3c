"""What a worker serves: model requests itself, and everything else by way of the control process."""

from collections.abc import Awaitable, Sequence

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.server.clock import Clock
from cortex_gateway.api import anthropic, ollama, openai
from cortex_gateway.api.documents import find_pdf_reader
from cortex_gateway.ports import Store
from cortex_gateway.proxy.proxy import Endpoint, Proxy


class Divided:
    """Serves a POST to a path of the proxy's, and passes everything else on.

    Args:
        proxied: serves the requests for models.
        paths: of these.
        inner: passes the others on.
    """

    def __init__(self, proxied: ASGIApp, paths: frozenset[str], inner: ASGIApp) -> None:
        self._proxied = proxied
        self._paths = paths
        self._inner = inner

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        is_ours = scope["method"] == "POST" and scope["path"] in self._paths
        return (self._proxied if is_ours else self._inner)(scope, receive, send)


class ByPath:
    """The endpoints of the proxy.

    Args:
        endpoints: by path.
    """

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self.endpoints = endpoints

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request for a path that is known."""
        return self.endpoints[scope["path"]](scope, receive, send)


def endpoints(proxy: Proxy, store: Store, clock: Clock) -> ByPath:
    """Return what the proxy serves, but for responses, which are kept where they are made."""
    routes: Sequence[Route] = (
        *openai.routes(proxy, clock.wall),
        *anthropic.routes(proxy, find_pdf_reader()),
        *ollama.routes(proxy, store, clock),
    )
    return ByPath(
        {route.path: route.endpoint for route in routes if isinstance(route.endpoint, Endpoint)}
    )
