"""What a caller asks for, read from the head and the body of a request once."""

import re
from collections.abc import Mapping, Sequence

import msgspec
from starlette.types import Receive, Scope

from cortex_core.codec import decode_request
from cortex_core.errors import InvalidRequestError
from cortex_core.headers import request_headers
from cortex_core.server.exchange import ClientGoneError
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER

# RFC 7240 section 4.3; other preferences may stand beside it.
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,6})\b', re.IGNORECASE)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model."""

    path: str
    headers: Sequence[tuple[str, str]]
    """Those that go on to a node, names in lower case."""
    body: bytes
    """As the caller wrote it."""
    model: str
    """As the caller named it."""
    is_stream: bool
    cold_ok: bool
    """False when the caller does not want to wait for a load."""
    wait_s: float | None
    """How long the caller is willing to wait for one; `None` when it does not say."""


async def read_call(scope: Scope, receive: Receive, request_id: str) -> Call:
    """Read a request whole; its size and pace are bounded by the server.

    Raises:
        InvalidRequestError: the body cannot be used; `param` names the field.
        InvalidJsonError: the body is no JSON.
        ClientGoneError: the caller left before it was complete.
    """
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    headers = dict(pairs)
    if headers.get("content-encoding", "identity") != "identity":
        raise InvalidRequestError(
            "compressed request bodies are not taken; send the body without content-encoding"
        )
    body = await _read_body(receive)
    envelope = decode_request(body, ENVELOPE_DECODER)
    return Call(
        path=scope["path"],
        headers=_onward(pairs, request_id),
        body=body,
        model=envelope.model,
        is_stream=bool(envelope.stream),
        cold_ok=headers.get("x-cortex-cold-ok", "").strip().lower() != "false",
        wait_s=_wait_s(headers),
    )


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError("the caller has left within its request")
        parts.append(message.get("body", b""))
        has_more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _onward(pairs: Sequence[tuple[str, str]], request_id: str) -> list[tuple[str, str]]:
    onward = [pair for pair in request_headers(pairs) if pair[0] != "x-request-id"]
    # The body was decoded, so it is JSON, whatever curl called it.
    onward += (("content-type", "application/json"), ("x-request-id", request_id))
    return onward


def _wait_s(headers: Mapping[str, str]) -> float | None:
    match = _WAIT.search(headers.get("prefer", ""))
    return None if match is None else float(match[1])
