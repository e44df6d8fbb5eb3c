"""The id that follows one request through every process, log line and error."""

import re
import secrets
from collections.abc import Callable

from cortex_core.ids import RequestId

HEADER = b"x-request-id"

NewRequestId = Callable[[], RequestId]
"""Makes ids; passed in, so that tests know what comes."""

# Long enough for a UUID with a prefix; printable, without separators of any log format.
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def random_request_id() -> RequestId:
    """Return `req_` and 24 hexadecimal digits."""
    return RequestId("req_" + secrets.token_hex(12))


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
        return [(HEADER, value), (b"request-id", value)]
    return [(HEADER, value)]
