"""The faces of one error in the dialects that callers speak; `translate.refusal` reads them back.

Shapes: OpenAI API reference, "Error codes"; Anthropic API reference, "Errors" (both read
November 2026). The dialect is chosen by path, and by headers where two dialects share a path.
"""

import enum
import math
from collections.abc import Mapping

import msgspec

from cortex_core.errors import (
    ContextLengthError,
    InsufficientDiskError,
    InsufficientVramError,
    MethodNotAllowedError,
    RequestError,
)


class Dialect(enum.Enum):
    """How the caller talks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"


class RenderedError(msgspec.Struct, frozen=True, kw_only=True):
    """An error as it goes onto the wire."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case; `content-type` included, `content-length` not."""
    body: bytes


_OPENAI_PATHS = (
    "/v1/chat/",
    "/v1/completions",
    "/v1/conversations",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
)


_OLLAMA_PATHS = (
    "/api/chat",
    "/api/embed",
    "/api/generate",
    "/api/ps",
    "/api/show",
    "/api/tags",
    "/api/version",
)


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """Return the dialect in which a caller of `path` expects its errors.

    Args:
        path: request path without the query string.
        headers: request headers, names in lower case.
    """
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    if path.startswith(_OPENAI_PATHS):
        return Dialect.OPENAI
    if path.startswith(_OLLAMA_PATHS):
        return Dialect.OLLAMA
    if "anthropic-version" in headers or "x-api-key" in headers:
        return Dialect.ANTHROPIC
    return Dialect.OPENAI


def render_error(error: RequestError, dialect: Dialect, request_id: str) -> RenderedError:
    """Return status, headers and JSON body of `error` in `dialect`."""
    headers = [("content-type", "application/json")]
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    if error.should_retry is not None:
        headers.append(("x-should-retry", "true" if error.should_retry else "false"))
    if isinstance(error, MethodNotAllowedError):
        headers.append(("allow", ", ".join(error.allowed)))
    status = error.anthropic_status if dialect is Dialect.ANTHROPIC else error.status
    return RenderedError(
        status=status,
        headers=tuple(headers),
        body=error_body(error, dialect, request_id),
    )


def error_body(error: RequestError, dialect: Dialect, request_id: str) -> bytes:
    """Return the JSON body of `error`, which is also the data of a mid-stream error event."""
    match dialect:
        case Dialect.OPENAI:
            return msgspec.json.encode(_openai(error))
        case Dialect.ANTHROPIC:
            return msgspec.json.encode(_anthropic(error, request_id))
        case Dialect.OLLAMA:
            return msgspec.json.encode({"error": error.message})


def error_event(error: RequestError, dialect: Dialect, request_id: str) -> bytes:
    """Return one whole event that ends a broken stream in `dialect`.

    OpenAI streams carry it as a plain `data:` event and no `[DONE]` follows; Anthropic's
    have an `event: error` line and no `message_stop` follows; Ollama's are lines of JSON.
    """
    body = error_body(error, dialect, request_id)
    if dialect is Dialect.OLLAMA:
        return body + b"\n"
    prefix = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return prefix + b"data: " + body + b"\n\n"


def _openai(error: RequestError) -> dict[str, object]:
    face: dict[str, object] = {
        "message": error.message,
        "type": error.openai_type,
        "param": error.param,
        "code": error.code,
    }
    if isinstance(error, InsufficientVramError | InsufficientDiskError):
        # Whoever asked for the load makes room by these numbers.
        face |= {"needed_bytes": error.needed_bytes, "free_bytes": error.free_bytes}
    return {"error": face}


def _anthropic(error: RequestError, request_id: str) -> dict[str, object]:
    message = error.message
    if isinstance(error, ContextLengthError) and error.prompt_tokens and error.limit_tokens:
        # Claude Code matches this very wording and starts to compact its history.
        message = f"prompt is too long: {error.prompt_tokens} tokens > {error.limit_tokens} maximum"
    face: dict[str, object] = {"type": error.anthropic_type, "message": message}
    if error.error_code is not None:
        face["details"] = {"error_code": error.error_code}
    return {"type": "error", "error": face, "request_id": request_id}
