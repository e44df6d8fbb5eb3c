"""A request as it came in: its head, its body, and what the head says of waiting."""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from starlette.types import Message, Receive, Scope

from cortex_core.errors import InvalidRequestError
from cortex_core.headers import CALLER_HEADER, combined, request_headers
from cortex_core.routing.queue import Priority, read_priority
from cortex_core.server.exchange import ClientGoneError, Exchange
from cortex_gateway.proxy.asked import Head

_MEMO = "cortex.call"

# RFC 7240 section 4.3; other preferences may stand beside it.
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,6})\b', re.IGNORECASE)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a request, read once."""

    head: Head
    onward: Sequence[tuple[str, str]]
    """Headers that go on to a node, names in lower case."""
    cold_ok: bool
    """False when the caller does not want to wait for a load."""
    caller: str
    """Whose request it is: a hash of the key, else the address."""
    priority: Priority
    session: str | None
    """What the caller calls its conversation."""
    shows_progress: bool
    """Whether the caller wants to see in its reasoning what it waits for."""
    shows_timing: bool
    """Whether the caller wants `server-timing` in the answer's head."""
    wait_s: float | None
    """How long the caller is willing to wait for one; `None` when it does not say."""


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a `Call` has of a head that its callers may send again."""

    headers: dict[str, str]
    allowed: Sequence[tuple[str, str]]
    cold_ok: bool
    caller: str | None
    """`None` without a key."""
    priority: Priority
    session: str | None
    shows_progress: bool
    shows_timing: bool
    wait_s: float | None


def read_call(scope: Scope, exchange: Exchange) -> Call:
    """Read the head of a request.

    Raises:
        InvalidRequestError: its body is encoded in a way that is not taken, or a header of ours
            says what it cannot.
    """
    known: _Known | None = exchange.memo.get(_MEMO)
    if known is None:
        known = exchange.memo[_MEMO] = _read(scope["headers"])
    request_id, client = exchange.request_id, scope.get("client")
    caller = known.caller or "address:" + (client[0] if client else "unknown")
    return Call(
        head=Head(path=scope["path"], headers=known.headers, request_id=request_id),
        # The body was decoded, so it is JSON, whatever curl called it.
        onward=(
            *known.allowed,
            ("content-type", "application/json"),
            ("x-request-id", request_id),
            (CALLER_HEADER, caller),
        ),
        cold_ok=known.cold_ok,
        caller=caller,
        priority=known.priority,
        session=known.session,
        shows_progress=known.shows_progress,
        shows_timing=known.shows_timing,
        wait_s=known.wait_s,
    )


def _read(pairs: Iterable[tuple[bytes, bytes]]) -> _Known:
    """Read the headers of a request, but for the length of its body.

    Raises:
        InvalidRequestError: its body is encoded in a way that is not taken, or a header of ours
            says what it cannot.
    """
    texts = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in pairs
        if name != b"content-length"
    ]
    headers = combined(texts)
    if headers.get("content-encoding", "identity") != "identity":
        raise InvalidRequestError(
            "compressed request bodies are not taken; send the body without content-encoding"
        )
    return _Known(
        headers=headers,
        allowed=[pair for pair in request_headers(texts) if pair[0] != "x-request-id"],
        cold_ok=headers.get("x-cortex-cold-ok", "").strip().lower() != "false",
        caller=_caller(headers),
        priority=read_priority(headers.get("x-cortex-priority")),
        session=headers.get("x-cortex-session"),
        shows_progress=_shows_progress(headers),
        shows_timing=_shows_timing(headers),
        wait_s=_wait_s(headers),
    )


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Read a request's body whole; its size and pace are bounded by the server.

    Raises:
        ClientGoneError: the caller left before it was complete.
    """
    piece, has_more = _piece(await receive())
    if not has_more:
        return bytes(piece)
    # Written where it stays: to keep all pieces and to join them takes twice the memory, most of
    # it new from the kernel each time, which costs more than to read the body. What is announced
    # is no memory yet: zeros come from the kernel when they are first written over.
    whole = io.BytesIO(bytes(_announced(scope)))
    whole.write(piece)
    while has_more:
        piece, has_more = _piece(await receive())
        whole.write(piece)
    whole.truncate()
    return whole.getvalue()


def _piece(message: Message) -> tuple[bytes, bool]:
    if message["type"] != "http.request":
        raise ClientGoneError("the caller has left within its request")
    return message.get("body", b""), message.get("more_body", False)


def _announced(scope: Scope) -> int:
    """Return the length of a body that says it, which the server has looked at."""
    return next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)


def _shows_progress(headers: Mapping[str, str]) -> bool:
    asked = headers.get("x-cortex-progress")
    if asked is not None and asked.strip().lower() != "reasoning":
        raise InvalidRequestError(
            f"{asked[:20]!r} is no way to show progress; use reasoning", param="x-cortex-progress"
        )
    return asked is not None


def _shows_timing(headers: Mapping[str, str]) -> bool:
    asked = headers.get("x-cortex-timing")
    if asked is not None and asked.strip() != "1":
        raise InvalidRequestError(
            f"{asked[:20]!r} is no way to ask for the stages; use 1", param="x-cortex-timing"
        )
    return asked is not None


def _caller(headers: Mapping[str, str]) -> str | None:
    key = headers.get("authorization") or headers.get("x-api-key")
    # Hashed, so that no key gets into a log or a record.
    return "key:" + hashlib.blake2b(key.encode(), digest_size=8).hexdigest() if key else None


def _wait_s(headers: Mapping[str, str]) -> float | None:
    match = _WAIT.search(headers.get("prefer", ""))
    return None if match is None else float(match[1])
