"""Errors on their way out: every one in the caller's dialect, none with our insides in it."""

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from cortex_core.dialect import RenderedError, dialect_of, render_error
from cortex_core.errors import (
    BodyTooLargeError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
)
from cortex_core.server.exchange import exchange_of

logger = logging.getLogger(__name__)


class Failures:
    """Plain ASGI middleware that answers whatever the app raises.

    A failure after the answer began is not repaired here: the app has sent its own error event,
    and the connection ends without the mark that would make the answer look complete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the request handler's edge
            await self._answer(lone_error(error), scope, send)

    async def _answer(self, error: BaseException, scope: Scope, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.cut is not None:
            # It was told to stop; what it raised on the way out is no news.
            return
        known = error if isinstance(error, RequestError) else None
        if known is None:
            _log_bug(error, scope)
        if not exchange.is_started:
            await send_error(known or InternalError(), scope, send)
        elif known is not None and not exchange.is_complete:
            logger.warning(
                "answer broke off: %s",
                known.message,
                extra={"request_id": exchange.request_id, "path": scope["path"]},
            )


def rendered(error: RequestError, scope: Scope) -> RenderedError:
    """Return `error` in the dialect of whoever sent the request of `scope`."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return render_error(error, dialect_of(scope["path"], headers), exchange_of(scope).request_id)


async def send_error(error: RequestError, scope: Scope, send: Send) -> None:
    """Answer with `error`; the answer must not have begun."""
    face = rendered(error, scope)
    headers = [(name.encode(), value.encode("latin-1")) for name, value in face.headers]
    headers.append((b"content-length", str(len(face.body)).encode()))
    await send({"type": "http.response.start", "status": face.status, "headers": headers})
    await send({"type": "http.response.body", "body": face.body})


def exception_handlers() -> dict[Any, ExceptionHandler]:
    """Return what Starlette needs to hand errors to us: `Starlette(exception_handlers=...)`.

    Its own handlers answer in plain text. Use `redirect_slashes = False` on its router too: the
    redirect is built from the caller's `Host`.
    """
    return {RequestError: _handle, HTTPException: _handle, Exception: _handle}


def lone_error(error: BaseException) -> BaseException:
    """Return what task groups wrapped, if there is a single error in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _handle(request: Request, error: Exception) -> Response:
    """Render; a bug is logged by `Failures`, to which Starlette raises it again."""
    alone = lone_error(error)
    if isinstance(alone, HTTPException):
        alone = _from_starlette(alone, request)
    known = alone if isinstance(alone, RequestError) else InternalError()
    face = rendered(known, request.scope)
    return Response(face.body, status_code=face.status, headers=dict(face.headers))


def _from_starlette(error: HTTPException, request: Request) -> RequestError:
    """Return our own error for one of Starlette's, which its router and parsers raise."""
    if error.status_code == 404:
        return NotFoundError(f"there is no {request.url.path[:200]!r} here")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        methods = tuple(sorted(m.strip() for m in allow.split(",") if m.strip()))
        return MethodNotAllowedError(request.method, methods or ("another method",))
    if error.status_code == 413:
        return BodyTooLargeError(error.detail)
    return InvalidRequestError(error.detail)


def _log_bug(error: BaseException, scope: Scope) -> None:
    logger.error(
        "request failed",
        exc_info=error,
        extra={
            "request_id": exchange_of(scope).request_id,
            "method": scope["method"],
            "path": scope["path"],
        },
    )
