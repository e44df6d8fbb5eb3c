"""HTTP/1 as bytes (RFC 9112): heads, bodies and answers; pure.

Every line ends with CR LF, every length is one number, and a message that two programs in a row
could read differently is refused. What the grammar allows and nobody sends is refused as well.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from cortex_core.errors import HeadersTooLargeError, MalformedRequestError

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together, before they are looked at."""

# Of a line between two chunks, and of all trailers. Nobody sends either.
_MAX_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 8 * 1024

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# RFC 9110, section 5.5: no control character but the tab.
PLAIN = bytes(byte for byte in range(256) if byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
_REQUEST_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
_LENGTH = re.compile(rb"\d{1,18}")
# Sixteen digits would be more than 2 ** 63 bytes.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;.*)?")
# The end of a line that no CR begins.
_BARE_LF = re.compile(rb"(?<!\r)\n")
_WATCHED = frozenset((b"connection", b"content-length", b"expect", b"host", b"transfer-encoding"))
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_HOPS = _FRAMING | {b"connection"}
_NO_CONTENT = 204
_BODILESS = frozenset((_NO_CONTENT, 304))

Pairs = list[tuple[bytes, bytes]]
Malformed = Callable[[str], Exception]


class Request(msgspec.Struct, kw_only=True, gc=False):
    """The head of a request."""

    method: str
    target: bytes
    version: str
    headers: Pairs
    """In their order, names in lower case, values without the blanks around them."""
    length: int | None = 0
    """Of the body in bytes; `None` when it comes in chunks."""
    is_last: bool = False
    """The caller sends no other on this connection."""
    wants_continue: bool = False
    """It waits for a word before it sends the body."""
    memo: dict[str, Any] = msgspec.field(default_factory=dict)
    """What was worked out from this head; see `cortex_core.server.heads`."""


def end_of_head(buffer: bytearray, start: int) -> int:
    """Return where the empty line that ends a head begins, or -1 if it has not come.

    Args:
        buffer: from the first byte of the head on.
        start: how much of it was looked at before.

    Raises:
        MalformedRequestError: no head begins like this.
        HeadersTooLargeError: it is over the limit, however much is to come.
    """
    end = buffer.find(b"\r\n\r\n", max(0, start - 3), MAX_HEAD_BYTES + 4)
    if end < 0:
        # An empty line, a TLS handshake, a caller that ends its lines in another way.
        if buffer[0] <= 0x20 or _BARE_LF.search(buffer, max(0, start - 1)):
            raise MalformedRequestError("this is not HTTP/1")
        if len(buffer) > MAX_HEAD_BYTES + 3:
            raise HeadersTooLargeError(f"at most {MAX_HEAD_BYTES} bytes of head are taken")
    return end


def parse_head(head: bytes) -> Request:
    """Read a head, the empty line at its end left out.

    Raises:
        MalformedRequestError: it is not one, or could be read in two ways.
    """
    lines = head.split(b"\r\n")
    if head.translate(None, PLAIN) != b"\r\n" * (len(lines) - 1):
        raise MalformedRequestError("control character in the head of the request")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise MalformedRequestError("the request line is malformed")
    method, target, version = match.groups()
    headers = parse_fields(lines[1:])
    request = Request(
        method=method.decode(), target=target, version=version.decode(), headers=headers
    )
    _frame(request)
    return request


def target_of(head: bytes) -> tuple[str, bytes]:
    """Return method and target of a head that is malformed, as far as they can be seen."""
    match = _REQUEST_LINE.fullmatch(head.partition(b"\r\n")[0])
    return (match[1].decode(), match[2]) if match else ("GET", b"/")


def parse_fields(lines: Sequence[bytes], malformed: Malformed = MalformedRequestError) -> Pairs:
    """Split header lines.

    Args:
        lines: without control characters.
        malformed: makes the error.

    Raises:
        MalformedRequestError: one is no header; a folded line is none. Or whatever is made.
    """
    parts = [line.split(b":", 1) for line in lines]
    try:
        names = [name for name, _ in parts]
    except ValueError:
        raise malformed("a header needs a colon") from None
    joined = b":".join(names)
    if b"" in names or joined.translate(None, _TOKEN + b":"):
        raise malformed("malformed name of a header")
    lowered = joined.lower().split(b":")
    return [(name, part[1].strip(b" \t")) for name, part in zip(lowered, parts)]  # noqa: B905 - as many


def _frame(request: Request) -> None:
    """Find out where the body ends, and what becomes of the connection (RFC 9112, section 6)."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        if name in _WATCHED:
            found.setdefault(name, []).append(value)
    hosts = len(found.get(b"host", ()))
    if hosts > 1 or (not hosts and request.version == "1.1"):
        raise MalformedRequestError("exactly one host header is needed")
    is_old = request.version < "1.1"
    request.is_last = is_old or has_token(found.get(b"connection", ()), b"close")
    if b"expect" in found and not is_old:
        request.wants_continue = has_token(found[b"expect"], b"100-continue")
    if b"transfer-encoding" in found or b"content-length" in found:
        request.length = _length(
            found.get(b"content-length", []), found.get(b"transfer-encoding", []), request.version
        )


def _length(lengths: list[bytes], codings: list[bytes], version: str) -> int | None:
    if codings:
        if lengths:
            raise MalformedRequestError("content-length and transfer-encoding exclude each other")
        if version == "1.0":
            raise MalformedRequestError("HTTP/1.0 has no transfer-encoding")
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise MalformedRequestError("the only transfer-encoding taken is chunked")
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise MalformedRequestError("content-length must be one number")
    return int(lengths[0])


def has_token(values: Iterable[bytes], token: bytes) -> bool:
    """Return whether one of `values`, which are lists of tokens in any case, has `token`."""
    for value in values:
        lowered = value.lower()
        if lowered == token or token in [part.strip(b" \t") for part in lowered.split(b",")]:
            return True
    return False


class Chunks:
    """Takes a body in chunks apart (RFC 9112, section 7.1); extensions and trailers are dropped.

    Args:
        malformed: makes the error.
    """

    def __init__(self, malformed: Malformed = MalformedRequestError) -> None:
        self.is_done = False
        self._malformed = malformed
        self._left = 0
        """Bytes that are missing of the chunk."""
        self._trailer_bytes = 0
        # Functions and no methods, which would be a circle with each body.
        self._step: Callable[[Chunks, bytearray, int, list[bytes]], int] = Chunks._size

    @property
    def is_between(self) -> bool:
        """Whether a chunk would begin with the next byte."""
        return self._step is Chunks._size

    def feed(self, buffer: bytearray) -> bytes:
        """Take from `buffer` what belongs to the body, and return what it carries.

        Raises:
            MalformedRequestError: it is not in chunks, or could be read in two ways. Or whatever
                is made.
        """
        position = 0
        pieces: list[bytes] = []
        while not self.is_done:
            after = self._step(self, buffer, position, pieces)
            if after < 0:
                break
            position = after
        del buffer[:position]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Each returns where it stopped, or -1 if more is needed.

    def _size(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int:
        line, after = self._line(buffer, start)
        if after < 0:
            return -1
        match = _CHUNK.fullmatch(line)
        if match is None or line.translate(None, PLAIN):
            raise self._malformed("malformed chunk in the body")
        self._left = int(match[1], 16)
        self._step = Chunks._data if self._left else Chunks._trailer
        return after

    def _data(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int:
        piece = bytes(buffer[start : start + self._left])
        if not piece:
            return -1
        pieces.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._step = Chunks._end
        return start + len(piece)

    def _end(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int:
        mark = buffer[start : start + 2]
        if not b"\r\n".startswith(mark):
            raise self._malformed("a chunk of the body is longer than it says")
        if len(mark) < 2:
            return -1
        self._step = Chunks._size
        return start + 2

    def _trailer(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int:
        line, after = self._line(buffer, start)
        if after < 0:
            return -1
        self.is_done = not line
        self._trailer_bytes += len(line)
        if self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise self._malformed("the trailers of the body are too large")
        if line.translate(None, PLAIN):
            raise self._malformed("control character in a trailer")
        if line and parse_fields([line], self._malformed)[0][0] in _FRAMING:
            raise self._malformed("a trailer cannot say where the body ends")
        return after

    def _line(self, buffer: bytearray, start: int) -> tuple[bytes, int]:
        """Return the line at `start` and where the next one begins; -1 if it has no end."""
        end = buffer.find(b"\r\n", start, start + _MAX_LINE_BYTES + 2)
        if end >= 0:
            return bytes(buffer[start:end]), end + 2
        if len(buffer) - start > _MAX_LINE_BYTES + 1:
            raise self._malformed("a line between chunks of the body is too long")
        return b"", -1


class AnswerError(RuntimeError):
    """The app's answer is none that HTTP/1 can carry; a bug of ours."""


@functools.lru_cache(maxsize=256)
def _lowered(name: bytes) -> bytes:
    """Return the name of an answer's header in lower case; there are few of them."""
    if not name or name.translate(None, _TOKEN):
        raise AnswerError(f"{name!r} is no name of a header")
    return name.lower()


class Answer:
    """Writes one answer.

    Args:
        method: of the request.
        version: of the request.
        is_last: whether the connection ends with it.
    """

    __slots__ = (
        "_has_no_body",
        "_left",
        "_method",
        "_version",
        "is_complete",
        "is_last",
        "is_started",
    )

    def __init__(self, method: str, version: str, *, is_last: bool) -> None:
        self.is_started = False
        self.is_complete = False
        self.is_last = is_last
        self._method = method
        self._version = version
        self._has_no_body = method == "HEAD"
        self._left: int | None = None
        """Bytes that were announced and have not come; `None` if it comes in chunks."""

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], date: bytes) -> bytes:
        """Return the head.

        Raises:
            AnswerError: there was one, or it could be read in two ways.
        """
        if self.is_started:
            raise AnswerError("an answer begins once")
        lines = [b"HTTP/1.1 %d " % status]
        for name, value in headers:
            known = _lowered(name)
            if known not in _HOPS or self._is_sent(known, value, status):
                lines.append(name + b": " + value)
        lines.append(b"date: " + date)
        if status in _BODILESS:
            self._has_no_body = True
        elif self._left is None:
            # Up to 1.0 the end of the connection is the end of the answer.
            if self._version < "1.1":
                self.is_last = True
            else:
                lines.append(b"transfer-encoding: chunked")
        if self.is_last:
            lines.append(b"connection: close")
        ends = len(lines) + 1
        lines.append(b"\r\n")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
            raise AnswerError("a header of the answer has more than one line")
        self.is_started = True
        return head

    def _is_sent(self, known: bytes, value: bytes, status: int) -> bool:
        """Take note of what the app says of the connection; return whether it goes out as it is."""
        if known == b"content-length":
            self._left = int(value)
            # RFC 9110, section 8.6.
            return status != _NO_CONTENT
        if known == b"connection" and has_token((value,), b"close"):
            self.is_last = True
            return False
        return known != b"transfer-encoding"

    def piece(self, data: bytes, *, is_last: bool) -> bytes:
        """Return a piece of the body.

        Raises:
            AnswerError: the answer has no head or is complete, or it is not as long as announced.
        """
        if not self.is_started or self.is_complete:
            raise AnswerError("this is no time for a piece of an answer")
        self.is_complete = is_last
        if self._has_no_body:
            return b""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (is_last and self._left):
                self.is_complete = False
                raise AnswerError("the answer is not as long as its content-length says")
            return data
        if self._version < "1.1":
            return data
        if not data:
            return b"0\r\n\r\n" if is_last else b""
        return b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if is_last else b"")
