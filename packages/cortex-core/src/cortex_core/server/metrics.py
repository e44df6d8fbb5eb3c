"""`/metrics`, as scrapers ask for it."""

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import MethodNotAllowedError, NotFoundError

PATH = "/metrics"


def metrics_app(registry: CollectorRegistry) -> ASGIApp:
    """Return an ASGI app that shows `registry` under `/metrics`, for a listener of its own.

    Goes behind `protect`, which answers the errors that it raises.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != PATH:
            raise NotFoundError(f"there is only {PATH} here")
        await show_metrics(registry, scope, send)

    return app


async def show_metrics(registry: CollectorRegistry, scope: Scope, send: Send) -> None:
    """Answer with all series of `registry`, in the text format that the caller accepts.

    Its collectors are asked in a thread.

    Raises:
        MethodNotAllowedError: neither GET nor HEAD.
    """
    if scope["method"] not in ("GET", "HEAD"):
        raise MethodNotAllowedError(scope["method"], ("GET", "HEAD"))
    accepts = b",".join(value for name, value in scope["headers"] if name == b"accept")
    encode, content_type = choose_encoder(accepts.decode("latin-1"))
    # A fleet of two hundred replicas takes a fifth of a second, which no stream is to wait for.
    body = await asyncio.to_thread(encode, registry)
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
