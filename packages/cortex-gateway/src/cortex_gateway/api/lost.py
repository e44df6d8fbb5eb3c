"""Paths that do not exist: what a client with a wrong base URL is told."""

from starlette.types import Receive, Scope, Send

from cortex_core.errors import NotFoundError

_WITHOUT_V1 = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/messages",
    "/models",
    "/responses",
)


async def lost(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a path that no route has.

    Raises:
        NotFoundError: always.
    """
    path = scope["path"]
    raise NotFoundError(f"there is no {path[:200]!r} here" + advice(path))


def advice(path: str) -> str:
    """Return what is probably wrong with the base URL of who asks for `path`; often nothing."""
    if path.startswith("/v1/v1/"):
        return (
            "; the base URL of an Anthropic client is that of the gateway alone, "
            "and that of an OpenAI client ends in one /v1"
        )
    if path.startswith(_WITHOUT_V1):
        return "; the client's base URL lacks /v1 at its end"
    return ""
