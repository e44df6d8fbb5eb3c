"""Reading an upstream's refusal, so that it can be told in another dialect.

Sources: the error shapes in `dialect`; vLLM's, whose `code` is the HTTP status as a number and
which older versions send without the object around it, and its sentence about prompts that are
too long (vLLM 0.32 and 0.33, read November 2026); FastAPI's `detail`.
"""

import re

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.errors import (
    ContextLengthError,
    EngineError,
    OverloadedError,
    RequestError,
    UpstreamRefusalError,
    UpstreamTimeoutError,
)

MAX_MESSAGE_CHARS = 2000
"""Of an upstream's words that a caller gets to see."""

_LIMITS = (
    re.compile(r"maximum context length (?:is |of |\()(\d[\d,]*)"),
    re.compile(r"prompt is too long: [\d,]+ tokens > (\d[\d,]*) maximum"),
    # llama.cpp's server.
    re.compile(r"exceeds the available context size \((\d[\d,]*) tokens\)"),
)
_PROMPTS = (
    re.compile(r"prompt is too long: (\d[\d,]*) tokens"),
    re.compile(r"(?:contains (?:at least )?|resulted in )(\d[\d,]*)(?! characters)\b"),
    re.compile(r"requested (\d[\d,]*) tokens"),
    re.compile(r"request \((\d[\d,]*) tokens\) exceeds"),
)

_ANTHROPIC_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

_ANTHROPIC_TYPES = {status: kind for kind, status in _ANTHROPIC_STATUSES.items()}

_OPENAI_STATUSES = {
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
}
"""Of codes and types, where no number says it."""


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    message: str | None = None
    type: str | None = None
    param: object = None
    code: object = None


class _Body(_Told, frozen=True, kw_only=True):
    error: _Told | str | None = None
    detail: object = None


_BODY = msgspec.json.Decoder(_Body)
_ERROR = msgspec.json.Decoder(_Told | str)


def read_refusal(status: int, body: bytes, *, retry_after_s: float | None = None) -> RequestError:
    """Return what an upstream's error answer means, whichever dialect it speaks.

    Args:
        status: HTTP status, 400 to 599.
        body: as it came; one that cannot be read gives an error without the upstream's words.
        retry_after_s: of the answer's `retry-after` header.
    """
    try:
        told = _BODY.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _meaning(status, _Told(), retry_after_s)
    if isinstance(told.error, _Told):
        return _meaning(status, told.error, retry_after_s)
    detail = told.detail if isinstance(told.detail, str) else None
    message = told.error or told.message or detail
    error = _Told(message=message, type=told.type, param=told.param, code=told.code)
    return _meaning(status, error, retry_after_s)


def read_error_object(raw: bytes, dialect: Dialect) -> RequestError:
    """Return what the error object of a stream's event means.

    Args:
        raw: the value of its `error` member.
        dialect: of the upstream.
    """
    try:
        told = _ERROR.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        told = ""
    error = _Told(message=told) if isinstance(told, str) else told
    return _meaning(_status_of(error, dialect), error, None)


def _status_of(error: _Told, dialect: Dialect) -> int:
    if dialect is Dialect.ANTHROPIC:
        return _ANTHROPIC_STATUSES.get(error.type or "", 500)
    if isinstance(error.code, int):
        return error.code if 400 <= error.code < 600 else 500
    by_type = _OPENAI_STATUSES.get(error.type or "", 500)
    return _OPENAI_STATUSES.get(error.code, by_type) if isinstance(error.code, str) else by_type


def _meaning(status: int, error: _Told, retry_after_s: float | None) -> RequestError:
    message = (error.message or "")[:MAX_MESSAGE_CHARS]
    message = message or f"the upstream answered with status {status}"
    code = error.code if isinstance(error.code, str) else None
    too_long = _context_error(message, code)
    if too_long is not None:
        return too_long
    if status == 402 or "insufficient_quota" in (code, error.type):
        return _no_quota(message)
    if status in (429, 503, 529):
        return _overload(status, message, code, retry_after_s)
    if status in (401, 403):
        # The key is ours, not the caller's, who must not be told to mend it.
        return EngineError("the upstream does not accept the gateway's key")
    if status == 504:
        return UpstreamTimeoutError(message)
    if status >= 500:
        return EngineError(message)
    return UpstreamRefusalError(
        message,
        status=status,
        openai_type="invalid_request_error",
        anthropic_type=_ANTHROPIC_TYPES.get(status, "invalid_request_error"),
        code=code or ("not_found" if status == 404 else None),
        param=error.param if isinstance(error.param, str) else None,
        retry_after_s=retry_after_s,
    )


def _context_error(message: str, code: str | None) -> ContextLengthError | None:
    limit = _first_number(_LIMITS, message)
    if limit is None:
        return ContextLengthError(message) if code == "context_length_exceeded" else None
    # Some only count characters, but then too there is a token more than there may be.
    prompt = _first_number(_PROMPTS, message) or limit + 1
    return ContextLengthError(message, prompt_tokens=prompt, limit_tokens=limit)


def _no_quota(message: str) -> UpstreamRefusalError:
    return UpstreamRefusalError(
        message,
        status=429,
        anthropic_status=402,
        openai_type="insufficient_quota",
        anthropic_type="billing_error",
        code="insufficient_quota",
    )


def _overload(
    status: int, message: str, code: str | None, retry_after_s: float | None
) -> RequestError:
    if status != 429:
        return OverloadedError(message, retry_after_s=retry_after_s)
    return UpstreamRefusalError(
        message,
        status=429,
        openai_type="rate_limit_error",
        anthropic_type="rate_limit_error",
        code=code or "rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )


def _first_number(patterns: tuple[re.Pattern[str], ...], message: str) -> int | None:
    for pattern in patterns:
        if match := pattern.search(message):
            return int(match[1].replace(",", ""))
    return None
