"""Answers of nodes as bytes (RFC 9112): heads, and where bodies end; pure.

As strict as what reads callers (`cortex_core.server.http1`): lines end with CR LF, a length is one
number, and what two programs could read in two ways is no answer.
"""

import re

import msgspec

from cortex_core.server.http1 import Chunks, has_token

MAX_HEAD_BYTES = 32 * 1024
"""Status line and headers together."""

MAX_HEADERS = 128
"""The limit of aiohttp, which read answers before."""

# RFC 9112, section 4: the reason may be empty, and many leave the blank out as well.
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
_FIELD = re.compile(r"([^:]+):([^\r]*)\r\n")
_START = b"HTTP/1."
# Half of the end of a line.
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]")
_LENGTH = re.compile(r"[0-9]{1,18}")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_WATCHED = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding"))
_BODILESS = frozenset((204, 304))
_LAST_CHUNK = b"0\r\n\r\n"
_TIMEOUT = re.compile(r"(?:^|[ ,;])timeout=([0-9]{1,6})", re.IGNORECASE)

Pairs = list[tuple[str, str]]


class MalformedAnswerError(ValueError):
    """What a node sends is no answer, or could be read in two ways."""


class Sized:
    """Takes a body of a known length apart."""

    __slots__ = ("_left", "is_done", "rest")

    def __init__(self, length: int) -> None:
        self.is_done = not length
        self.rest = b""
        """What came behind the end of the body."""
        self._left = length

    def feed(self, data: bytes) -> bytes:
        """Take what came, and return what it carries."""
        self._left -= len(data)
        if self._left > 0:
            return data
        self.is_done = True
        if self._left:
            data, self.rest = data[: self._left], data[self._left :]
        return data

    def end(self) -> bool:
        """Return whether the body may end here, as the connection does."""
        return self.is_done


class Unsized:
    """Takes a body that ends where the connection does."""

    __slots__ = ("is_done", "rest")

    def __init__(self) -> None:
        self.is_done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take what came, all of which is of the body."""
        return data

    def end(self) -> bool:
        """End it."""
        self.is_done = True
        return True


class Chunked:
    """Takes a body in chunks apart; whole ones, as nodes write them, without `Chunks`."""

    __slots__ = ("_buffer", "_chunks", "_is_resting", "is_done", "rest")

    def __init__(self) -> None:
        self.is_done = False
        self.rest = b""
        self._chunks = Chunks(MalformedAnswerError)
        self._buffer = bytearray()
        self._is_resting = True
        """Whether the next byte begins a chunk."""

    def feed(self, data: bytes) -> bytes:
        """Take what came, and return what it carries.

        Raises:
            MalformedAnswerError: it is not in chunks, or could be read in two ways.
        """
        if not self._is_resting:
            return self._feed_slowly(data)
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            match = _SIZE.match(data, at)
            start = match.end() if match else 0
            end = start + int(match[1], 16) if match else 0
            if start == end or data[end : end + 2] != b"\r\n":
                break
            if end + 2 == size and not pieces:
                # One chunk, as nodes write each token.
                return data[start:end]
            pieces.append(data[start:end])
            at = end + 2
        if at < size:
            rest = data[at:]
            if rest == _LAST_CHUNK:
                self.is_done = True
            else:
                pieces.append(self._feed_slowly(rest))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _feed_slowly(self, data: bytes) -> bytes:
        self._buffer += data
        piece = self._chunks.feed(self._buffer)
        self.is_done = self._chunks.is_done
        if self.is_done:
            self.rest = bytes(self._buffer)
        self._is_resting = not self._buffer and self._chunks.is_between
        return piece

    def end(self) -> bool:
        """Return whether the body may end here, as the connection does."""
        return self.is_done


Body = Sized | Unsized | Chunked


class Head(msgspec.Struct, kw_only=True, gc=False):
    """The head of an answer."""

    status: int
    headers: Pairs
    """In their order, names in lower case, values without the blanks around them."""
    length: int | None = 0
    """Of the body in bytes; `None` where only its own bytes or the connection's end tell."""
    is_chunked: bool = False
    is_last: bool = False
    """The node takes no other request on this connection."""
    keep_alive_s: float | None = None
    """How long the node keeps the connection for another one, if it says so."""


def end_of_head(buffer: bytes | bytearray, start: int) -> int:
    """Return where the first byte after a head is, or -1 if its end has not come.

    Args:
        buffer: from the first byte of the head on, not empty.
        start: how much of it was looked at before.

    Raises:
        MalformedAnswerError: no head begins like this.
    """
    end = buffer.find(b"\r\n\r\n", max(0, start - 3), MAX_HEAD_BYTES)
    if end < 0:
        begins = buffer.startswith(_START) or _START.startswith(buffer)
        # A head whose lines end in another way would be waited for until the time is up.
        if not begins or _BARE.search(buffer, max(0, start - 1)):
            raise MalformedAnswerError("this is not HTTP/1")
        if len(buffer) >= MAX_HEAD_BYTES:
            raise MalformedAnswerError(f"at most {MAX_HEAD_BYTES} bytes of head are taken")
        return -1
    return end + 4


def parse_head(head: bytes) -> Head:
    """Read a head, the empty line at its end included.

    Raises:
        MalformedAnswerError: it is not one, or could be read in two ways.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        raise MalformedAnswerError("malformed head")
    minor, status, fields = match.groups()
    headers = [
        (name.lower(), value.strip(" \t"))
        for name, value in _FIELD.findall(fields.decode("latin-1"))
    ]
    if len(headers) > MAX_HEADERS:
        raise MalformedAnswerError(f"at most {MAX_HEADERS} headers are taken")
    known = Head(status=int(status), headers=headers, is_last=minor == b"0")
    _frame(known)
    return known


def body_of(head: Head) -> Body:
    """Return what takes the body apart that comes behind `head`."""
    if head.is_chunked:
        return Chunked()
    return Unsized() if head.length is None else Sized(head.length)


def _frame(head: Head) -> None:
    """Find out where the body ends, and what becomes of the connection (RFC 9112, section 6)."""
    is_old = head.is_last
    length: str | None = None
    coding: str | None = None
    for name, value in head.headers:
        if name not in _WATCHED:
            continue
        if name == "content-length":
            length = value if length is None else "more than one"
        elif name == "transfer-encoding":
            coding = value.lower() if coding is None else "more than one"
        elif name == "keep-alive":
            found = _TIMEOUT.search(value)
            head.keep_alive_s = float(found[1]) if found else None
        elif has_token((value.encode("latin-1"),), b"close"):
            head.is_last = True
    if length is not None and (coding is not None or not _LENGTH.fullmatch(length)):
        raise MalformedAnswerError("content-length must be one number, and alone")
    if coding is not None and (coding != "chunked" or is_old):
        raise MalformedAnswerError("the only transfer-encoding taken is chunked, from HTTP/1.1 on")
    head.is_chunked = coding is not None
    if head.status not in _BODILESS and head.status >= 200:
        head.length = None if length is None else int(length)
    else:
        head.is_chunked = False
