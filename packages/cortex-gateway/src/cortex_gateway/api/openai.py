"""The OpenAI dialect: its paths, all served by the proxy."""

from starlette.routing import Route
from starlette.types import ASGIApp

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
)
"""Paths whose requests go to an engine; `/v1/rerank` and `/v1/score` are vLLM's own."""


def routes(proxy: ASGIApp) -> list[Route]:
    """Return the routes of the dialect, which hand their requests to `proxy` as they come."""
    # An object that is no function is mounted as an ASGI app; nothing is read on its behalf.
    return [Route(path, endpoint=proxy, methods=["POST"]) for path in PATHS]
