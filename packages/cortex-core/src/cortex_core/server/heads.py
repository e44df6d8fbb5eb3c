"""Heads of requests that were read before: a caller sends the same one time and again."""

import msgspec

from cortex_core.server.http1 import Request, parse_head

MAX_KNOWN = 256
"""Heads that are kept, the oldest given up first."""

MAX_KNOWN_BYTES = 4096
"""Size of a head that is worth keeping; those of SDKs have some 600 bytes."""

# As nearly everybody writes it: by the standard, or as SDKs do.
_NAMES = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_LENGTH = b"content-length"
_MAX_DIGITS = 18


class Heads:
    """Reads heads as `parse_head` does, those that are known but for the body's length from memory.

    A request's `memo` is that of all with the same head, so that whoever works something out from
    a head can find it there the next time.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Request, int]] = {}
        """By the head with the number cut out; with the place of that number's header."""

    def read(self, head: bytes) -> Request:
        """Read a head, the empty line at its end left out.

        Raises:
            MalformedRequestError: as `parse_head` does.
        """
        start = _number_at(head)
        number = b"" if start < 0 else head[start:].partition(b"\r\n")[0]
        if not number.isdigit() or len(number) > _MAX_DIGITS:
            return parse_head(head)
        # Of two such lines one would stay in the key, and what has two is never kept.
        key = head[:start] + head[start + len(number) :]
        known = self._known.get(key)
        if known is None:
            return self._keep(key, parse_head(head))
        like, place = known
        headers = like.headers.copy()
        headers[place] = (_LENGTH, number)
        return Request(
            method=like.method,
            target=like.target,
            version=like.version,
            headers=headers,
            length=int(number),
            is_last=like.is_last,
            wants_continue=like.wants_continue,
            memo=like.memo,
        )

    def _keep(self, key: bytes, request: Request) -> Request:
        if len(key) <= MAX_KNOWN_BYTES:
            place = [name for name, _ in request.headers].index(_LENGTH)
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            # Whoever serves the request may do with its list what they like.
            self._known[key] = (
                msgspec.structs.replace(request, headers=request.headers.copy()),
                place,
            )
        return request


def _number_at(head: bytes) -> int:
    """Return where the number of a header with the body's length begins, or -1."""
    for name in _NAMES:
        found = head.find(name)
        if found >= 0:
            return found + len(name)
    return -1
