"""What must hold of a request's head before anything else looks at it; pure.

The parser in front refuses what two programs in a row may read differently (RFC 9112, section
11.2, request smuggling). Here it is refused whatever the parser: in what it makes of a head, in
names that CGI-style programs take for those, and in what this server does not do or not take.
"""

import re
from collections.abc import Mapping

import msgspec
from starlette.types import Scope

from cortex_core.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    MalformedRequestError,
    PermissionDeniedError,
    RequestError,
    UpgradeRequiredError,
)
from cortex_core.ids import RequestId
from cortex_core.server.http1 import PLAIN, Request, has_token
from cortex_core.server.limits import Limits
from cortex_core.server.request_id import accepted_request_id


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard needs to know of a request's head."""

    error: RequestError | None
    """Why the request is refused; `None` when it is fine."""
    body_bytes: int | None
    """Announced length of the body; 0 without one, `None` when it comes in chunks."""
    request_id: RequestId | None
    """The caller's own id, if it sent an acceptable one."""


# Underscored names are looked at because CGI-style programs take them for the hyphenated ones.
_WATCHED = frozenset(
    (
        b"content-length",
        b"transfer-encoding",
        b"content_length",
        b"transfer_encoding",
        b"host",
        b"x-request-id",
        b"connection",
        b"upgrade",
    )
)
_LENGTH = re.compile(rb"\d{1,18}")

_Found = Mapping[bytes, list[bytes]]


_PASSED = "cortex.passed"
_DIGITS = 18
"""By which two heads may differ that share a memo: see `cortex_core.server.heads`."""


def check(request: Request, scope: Scope, limits: Limits) -> Head:
    """Do as `read_head` does, or find out that the same head has passed."""
    passed: tuple[Limits, Head] | None = request.memo.get(_PASSED)
    if passed is not None and passed[0] is limits:
        error = _length_error(request.length, limits)
        known = passed[1]
        return Head(error=error, body_bytes=request.length, request_id=known.request_id)
    head = read_head(scope, limits)
    room = limits.max_header_bytes - _DIGITS
    if head.error is None and sum(len(name) + len(value) for name, value in request.headers) < room:
        request.memo[_PASSED] = (limits, head)
    return head


def read_head(scope: Scope, limits: Limits) -> Head:
    """Check method, version, target and headers of an HTTP scope, in that order."""
    headers = scope["headers"]
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _WATCHED:
            found.setdefault(name, []).append(value)
    values = b"".join([value for _, value in headers])
    size = len(values) + sum([len(name) for name, _ in headers])
    length = _body_bytes(found)
    return Head(
        error=(
            _target_error(scope)
            or _size_error(len(headers), size, limits)
            or _value_error(values)
            or _framing_error(scope, found)
            or _host_error(found, limits)
            or _length_error(length, limits)
            or _upgrade_error(scope["method"], found)
        ),
        body_bytes=length,
        request_id=accepted_request_id(found.get(b"x-request-id", [None])[0]),
    )


def _target_error(scope: Scope) -> RequestError | None:
    if scope["http_version"] not in ("1.1", "1.0"):
        return MalformedRequestError("only HTTP/1.1 and HTTP/1.0 are spoken here")
    if scope["method"] in ("CONNECT", "TRACE"):
        return MalformedRequestError(f"{scope['method']} is not served here")
    # Absolute and asterisk forms are for proxies and for servers that have them.
    if not scope["raw_path"].startswith(b"/"):
        return MalformedRequestError("the request target must be a path")
    return None


def _size_error(count: int, size: int, limits: Limits) -> RequestError | None:
    if count > limits.max_headers:
        return HeadersTooLargeError(f"{count} headers; at most {limits.max_headers} are taken")
    if size > limits.max_header_bytes:
        return HeadersTooLargeError(
            f"{size} bytes of headers; at most {limits.max_header_bytes} are taken"
        )
    return None


def _value_error(values: bytes) -> RequestError | None:
    if values.translate(None, PLAIN):
        return MalformedRequestError("control character in a header")
    return None


def _framing_error(scope: Scope, found: _Found) -> RequestError | None:
    if b"content_length" in found or b"transfer_encoding" in found:
        return MalformedRequestError("header names are written with hyphens")
    lengths = found.get(b"content-length", ())
    codings = found.get(b"transfer-encoding", ())
    if lengths and codings:
        return MalformedRequestError("content-length and transfer-encoding exclude each other")
    if codings and scope["http_version"] == "1.0":
        return MalformedRequestError("HTTP/1.0 has no transfer-encoding")
    if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
        return MalformedRequestError("the only transfer-encoding taken is chunked")
    if len(set(lengths)) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        return MalformedRequestError("content-length must be one number")
    return None


def _host_error(found: _Found, limits: Limits) -> RequestError | None:
    if limits.allowed_hosts is None:
        return None
    host = found.get(b"host", [b""])[0].decode("latin-1").lower()
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    if name in limits.allowed_hosts:
        return None
    return PermissionDeniedError("this name is not served here; see the list of allowed hosts")


def _length_error(length: int | None, limits: Limits) -> RequestError | None:
    if length is None or length <= limits.max_body_bytes:
        return None
    return body_too_large(limits.max_body_bytes)


def _upgrade_error(method: str, found: _Found) -> RequestError | None:
    """Say that WebSocket is not spoken; other wishes to upgrade are ignored, as they may be."""
    if method != "GET" or b"upgrade" not in found:
        return None
    if not has_token(found.get(b"connection", ()), b"upgrade"):
        return None
    if not has_token(found[b"upgrade"], b"websocket"):
        return None
    return UpgradeRequiredError("WebSocket is not spoken here; use plain HTTP")


def body_too_large(limit_bytes: int) -> BodyTooLargeError:
    """Return the error for a body over the limit, however that was found out."""
    return BodyTooLargeError(f"the request body is larger than {limit_bytes} bytes")


def _body_bytes(found: _Found) -> int | None:
    if b"transfer-encoding" in found:
        return None
    lengths = found.get(b"content-length")
    if not lengths:
        return 0
    return int(lengths[0]) if _LENGTH.fullmatch(lengths[0]) else None
