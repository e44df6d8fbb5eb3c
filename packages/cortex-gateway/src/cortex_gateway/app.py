"""The gateway's HTTP surface as one ASGI application."""

from starlette.applications import Starlette

from cortex_core.server.drain import Drain
from cortex_core.server.failures import exception_handlers
from cortex_gateway.api import admin, health, models, openai
from cortex_gateway.ports import Store
from cortex_gateway.proxy.proxy import Proxy


def build_app(*, store: Store, proxy: Proxy, drain: Drain, version: str, created: int) -> Starlette:
    """Return the application, without what the server wraps around it.

    Args:
        store: where the snapshot and the catalogue come from.
        proxy: serves the model requests.
        drain: tells whether the process is going down.
        version: of this distribution.
        created: epoch seconds to show as every model's creation time.
    """
    app = Starlette(
        routes=[
            *health.routes(store, version=version, is_draining=lambda: drain.is_draining),
            *models.routes(store, created),
            *admin.routes(store),
            *openai.routes(proxy),
        ],
        exception_handlers=exception_handlers(),
    )
    # Starlette would build the redirect from the caller's `Host`.
    app.router.redirect_slashes = False
    return app
