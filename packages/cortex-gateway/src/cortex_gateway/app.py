"""The gateway's HTTP surface as one ASGI application."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.routing import Route

from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_core.server.failures import exception_handlers
from cortex_core.translate.target import PdfReader
from cortex_gateway.api import (
    admin,
    admin_config,
    admin_fit,
    admin_models,
    admin_nodes,
    admin_weights,
    anthropic,
    decisions,
    health,
    lost,
    models,
    ollama,
    openai,
)
from cortex_gateway.api.background import Background
from cortex_gateway.api.conversations import ConversationsApi
from cortex_gateway.api.responses import ResponsesApi
from cortex_gateway.control.control import Control
from cortex_gateway.ports import Configured
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.records.store import RecordStore


def build_app(
    *,
    control: Control,
    configured: Configured,
    proxy: Proxy,
    drain: Drain,
    version: str,
    clock: Clock,
    read_pdf: PdfReader | None,
    records: RecordStore | None,
    background: Background,
    new_id: Callable[[], str],
) -> Starlette:
    """Return the application, without what the server wraps around it.

    Args:
        control: the fleet, and what operators may have done to it.
        configured: the settings in force.
        proxy: serves the model requests.
        drain: tells whether the process is going down.
        version: of this distribution.
        clock: dates answers; the time of this call is shown as every model's creation time.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.
        records: where responses and conversations are kept; `None` keeps none.
        background: runs responses that nobody waits for.
        new_id: returns hexadecimal digits that are nobody else's.
    """
    store = control.store
    responses = ResponsesApi(
        proxy, records, background, new_id=new_id, epoch_s=clock.wall, read_pdf=read_pdf
    )
    conversations = ConversationsApi(records, new_id=new_id, epoch_s=clock.wall)
    app = Starlette(
        routes=[
            *health.routes(store, version=version, is_draining=lambda: drain.is_draining),
            *models.routes(store, int(clock.wall())),
            *admin.routes(store, clock),
            *decisions.routes(proxy.journal),
            *_operating(control),
            *admin_config.routes(configured),
            *openai.routes(proxy, clock.wall),
            *anthropic.routes(proxy, read_pdf),
            *responses.routes(),
            *conversations.routes(),
            *ollama.routes(proxy, store, clock),
        ],
        exception_handlers=exception_handlers(),
    )
    # Starlette would build the redirect from the caller's `Host`.
    app.router.redirect_slashes = False
    app.router.default = lost.lost
    return app


def _operating(control: Control) -> list[Route]:
    """Return the paths with which a fleet is operated."""
    store, operations = control.store, control.operations
    return [
        *admin_nodes.routes(operations, control.drainage),
        *admin_models.routes(store, operations, control.loading),
        *admin_fit.routes(store, operations),
        *admin_weights.routes(store, operations),
    ]
