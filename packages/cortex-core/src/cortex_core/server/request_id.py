"""The id that follows one request through every process, log line and error."""

import os
import re
from collections.abc import Callable

from cortex_core.ids import RequestId

HEADER = b"x-request-id"
_ANTHROPICS = b"request-id"

NAMES = frozenset((HEADER, _ANTHROPICS))
"""Headers of answers that say it, which no app sets itself."""

NewRequestId = Callable[[], RequestId]
"""Makes ids; passed in, so that tests know what comes."""

# Long enough for a UUID with a prefix; printable, without separators of any log format.
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


_ID_BYTES = 12
_IDS_AT_ONCE = 256

_random = bytearray()
"""Drawn ahead: to ask the system for each id costs more than all else about it."""

os.register_at_fork(after_in_child=_random.clear)


def random_request_id() -> RequestId:
    """Return `req_` and 24 hexadecimal digits, which nobody can guess."""
    if not _random:
        _random.extend(os.urandom(_ID_BYTES * _IDS_AT_ONCE))
    drawn = _random[-_ID_BYTES:]
    del _random[-_ID_BYTES:]
    return RequestId("req_" + drawn.hex())


def accepted_request_id(value: bytes | None) -> RequestId | None:
    """Return the caller's own id if it is fit to be logged and sent back, else `None`."""
    if value is None or not _ACCEPTABLE.fullmatch(value):
        return None
    return RequestId(value.decode("ascii"))


def response_headers(request_id: RequestId, path: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell the caller its request's id.

    Anthropic's SDKs read `request-id` (API reference, "Request headers", November 2026).
    """
    value = request_id.encode()
    if path.startswith("/v1/messages"):
        return [(HEADER, value), (_ANTHROPICS, value)]
    return [(HEADER, value)]
