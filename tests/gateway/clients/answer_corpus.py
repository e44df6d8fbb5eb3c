"""Answers of nodes, good, odd and hostile, and in which of them our client differs from aiohttp.

How they differ is told by the rows of docs/explanation/http-client.md. After each case the
connection ends.
"""

from collections.abc import Iterator

import msgspec

_DIFFERENCES = {
    "status-below-100": "status 17-18",
    "other-versions": "status 31-32 39",
    "blank-lines-before": "status 42-43",
    "control-characters": "status 44-46, value 1-8 10-11 13-31, coding 17, chunks 54",
    "folded-lines": "name 7 9, first name 1, value 53-54, end of the status line 5, "
    "end of a header 5-6, chunks 53",
    "bare-lf": "value 33 35, end of the status line 1, end of a header 1, end of the head 1-3, "
    "all lines with LF 0, chunks 17 19",
    "long-heads": "value 50-51",
    "surplus": "length 1 4, length of old 1 4, bodiless with body 0-1, bodiless in chunks 0-1, "
    "chunks 61, surplus 0 3",
    "huge-length": "length 29-30 32",
    "tab-behind-a-value": "coding 5",
    "codings": "coding 6-16 18-21, coding of old 0-1",
    "broken-body": "chunks 16 18 20 22 24 26-31 37-40 46-47 50-52 56",
    "huge-chunk": "chunks 8",
    "space-in-chunks": "chunks 23 25 36",
    "extensions": "chunks 33 35 41",
    "long-lines-in-chunks": "chunks 43 58",
    "many-trailers": "chunks 59-60",
    "framing-in-trailers": "chunks 57",
    "switching": "interim 7-8",
}
"""Rows of the page, and the cases that they are about: kinds with numbers."""


def _named() -> Iterator[tuple[str, str]]:
    for difference, cases in _DIFFERENCES.items():
        for part in cases.split(", "):
            kind = part.rstrip("0123456789- ")
            for span in part.removeprefix(kind).split():
                first, _, last = span.partition("-")
                for number in range(int(first), int(last or first) + 1):
                    yield f"{kind} {number}", difference


_DIFFERENCE_OF = dict(_named())


class Case(msgspec.Struct, frozen=True):
    """What a node answers a POST with, before it closes the connection."""

    name: str
    data: bytes

    @property
    def difference(self) -> str:
        """Row of the page, or nothing where there is none."""
        return _DIFFERENCE_OF.get(self.name.partition(":")[0], "")


def _cases(kind: str, pattern: bytes, rows: list[bytes]) -> Iterator[Case]:
    """Put each of `rows` in the place of `@` in `pattern`."""
    for number, varying in enumerate(rows):
        shown = ascii(varying)[2:-1][:40]
        yield Case(f"{kind} {number}: {shown}", pattern.replace(b"@", varying))


def _status_lines() -> Iterator[Case]:
    rows: list[bytes] = [
        b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200 All is well", b"HTTP/1.1 200 \xc3\xa4\xff", b"HTTP/1.1 200 a\tb",
        b"HTTP/1.1 201 Created", b"HTTP/1.1 299 x", b"HTTP/1.1 307 x", b"HTTP/1.1 404 x",
        b"HTTP/1.1 429 x", b"HTTP/1.1 500 x", b"HTTP/1.1 503 x", b"HTTP/1.1 599 x",
        b"HTTP/1.1 600 x", b"HTTP/1.1 999 x", b"HTTP/1.1 000 x", b"HTTP/1.1 099 x",
        b"HTTP/1.1 20 x", b"HTTP/1.1 2000 x", b"HTTP/1.1 2xx x", b"HTTP/1.1 -20 x", b"HTTP/1.1",
        b"HTTP/1.1 ", b"HTTP/1.1  200 OK", b"HTTP/1.1 200  OK", b"HTTP/1.1\t200 OK",
        b" HTTP/1.1 200 OK", b"http/1.1 200 OK", b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK",
        b"HTTP/2.0 200 OK", b"HTTP/2 200", b"HTTP/1.10 200 OK", b"HTTP/01.1 200 OK",
        b"HTTP/11 200 OK", b"HTTP1.1 200 OK", b"ICY 200 OK", b"RTSP/1.0 200 OK", b"HTTPS/1.1 200",
        b"", b"\r\nHTTP/1.1 200 OK", b"\nHTTP/1.1 200 OK", b"HTTP/1.1 200 a\x00b",
        b"HTTP/1.1 200 a\x01b", b"HTTP/1.1 200 a\x7fb", b"HTTP/1.1 200 a\rb", b"HTTP/1.1 200 a\nb",
        b"HTTP/1.1 200 " + b"r" * 5000, b"HTTP/1.1 200 " + b"r" * 40_000, b"SSH-2.0-OpenSSH",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"220 mail ready", b"<html>", b"{}",
        b"\xef\xbb\xbfHTTP/1.1 200 OK", b"GET / HTTP/1.1", b"POST / HTTP/1.1\r\nhost: x",
    ]  # fmt: skip
    yield from _cases("status", b"@\r\ncontent-length: 2\r\n\r\nok", rows)


def _names() -> Iterator[Case]:
    rows: list[bytes] = [b"x", b"X-Y", b"x_y", b"!#$%&'*+-.^_`|~9", b"x" * 5000, b"X" * 3]
    rows += [b"", b" x", b"x ", b"\tx", b"x\t", b"x y", b"x\x00", b"\xc3\xa4", b"x\r"]
    rows += [b"x" + bytes([mark]) + b"y" for mark in b'"(),/;<=>?@[\\]{}\x7f\x80\xff\x01\x0b\x1f']
    rows += [b"content-length ", b"Content_Length", b"content-length\x00", b"transfer_encoding"]
    yield from _cases(
        "name", b"HTTP/1.1 200 OK\r\na: b\r\n@: 1\r\ncontent-length: 2\r\n\r\nok", rows
    )
    yield from _cases(
        "first name", b"HTTP/1.1 200 OK\r\n@: 1\r\ncontent-length: 2\r\n\r\nok", rows[6:11]
    )
    lines: list[bytes] = [
        b"x",
        b":",
        b": x",
        b"x:",
        b"x: ",
        b"x:\t",
        b"x:y:z",
        b"x::",
        b"=",
        b"\x00",
    ]
    yield from _cases("line", b"HTTP/1.1 200 OK\r\n@\r\ncontent-length: 2\r\n\r\nok", lines)


def _values() -> Iterator[Case]:
    rows: list[bytes] = [b"a" + bytes([mark]) + b"b" for mark in [*range(32), 127] if mark != 10]
    rows += [b"a\nb", b"a\nb: c", b"a\r\nb: c", b"a\n\nb", b"a\r\n\r\nb", b"\x80", b"\xff"]
    rows += [b"\xc3\xa4", b"", b" ", b"\t", b" a ", b"\ta\t", b"a  b", b"a\tb", b'"a"', b"a,b"]
    rows += [b"a" * 8000, b"a" * 9000, b"a" * 30_000, b"a" * 40_000, b"a\r\n b", b"a\r\n\tb"]
    yield from _cases("value", b"HTTP/1.1 200 OK\r\nx: @\r\ncontent-length: 2\r\n\r\nok", rows)
    for count in (1, 2, 100, 126, 127, 128, 129, 1000):
        fields = b"".join(b"x%d: y\r\n" % number for number in range(count))
        yield from _cases(
            f"{count} headers", b"HTTP/1.1 200 OK\r\n@content-length: 2\r\n\r\nok", [fields]
        )


def _line_ends() -> Iterator[Case]:
    rows: list[bytes] = [b"\r\n", b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\t"]
    yield from _cases(
        "end of the status line", b"HTTP/1.1 200 OK@content-length: 2\r\n\r\nok", rows
    )
    yield from _cases(
        "end of a header", b"HTTP/1.1 200 OK\r\nx: a@content-length: 2\r\n\r\nok", rows
    )
    rows = [b"\r\n\r\n", b"\r\n\n", b"\n\r\n", b"\n\n", b"\r\r", b"\r\n\r", b"\r\n\r\r\n", b"\r\n"]
    yield from _cases("end of the head", b"HTTP/1.1 200 OK\r\ncontent-length: 2@ok", rows)
    yield Case("all lines with LF 0", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok")


def _lengths() -> Iterator[Case]:
    rows: list[bytes] = [
        b"5", b"0", b"05", b"0000000005", b"4", b"6", b"500", b"5,5", b"5, 5", b"5,6", b"5,",
        b",5", b"+5", b"-5", b"-0", b"0x5", b"5.0", b"5e0", b"", b" ", b"a", b"5a", b"5 5", b"5;",
        b'"5"', b"\xd9\xa5", b"\xb2", b"5\x00", b"1" * 18, b"1" * 19, b"1" * 20, b"1" * 21,
        b"0" * 18 + b"5", b"9" * 17, b"infinity", b"5_0", b"1_000", b" 5 ", b"\t5\t", b"5\x0b",
        b"5\r\ncontent-length: 6", b"5\r\ncontent-length: 5", b"5\r\nCONTENT-LENGTH: 05",
        b"5\r\ncontent_length: 6", b"0\r\ncontent-length: 5",
        b"5\r\ntransfer-encoding: chunked", b"5\r\ntransfer-encoding: identity",
    ]  # fmt: skip
    yield from _cases("length", b"HTTP/1.1 200 OK\r\ncontent-length: @\r\n\r\nhello", rows)
    yield from _cases(
        "length of old", b"HTTP/1.0 200 OK\r\ncontent-length: @\r\n\r\nhello", rows[:8]
    )
    bodiless: list[bytes] = [b"204 x", b"304 x", b"205 x", b"200 x"]
    yield from _cases(
        "bodiless with body", b"HTTP/1.1 @\r\ncontent-length: 5\r\n\r\nhello", bodiless
    )
    yield from _cases("bodiless with length", b"HTTP/1.1 @\r\ncontent-length: 0\r\n\r\n", bodiless)
    yield from _cases("bodiless", b"HTTP/1.1 @\r\n\r\n", bodiless)
    chunked = b"HTTP/1.1 @\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    yield from _cases("bodiless in chunks", chunked, bodiless)


def _codings() -> Iterator[Case]:
    rows: list[bytes] = [
        b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked", b"chunked\t", b"gzip",
        b"identity", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"chunked,", b"",
        b"chunkedd", b"xchunked", b"chunked;a=b", b'"chunked"', b"chunked\x0b", b"x",
        b"chunked\r\ntransfer-encoding: chunked", b"gzip\r\ntransfer-encoding: chunked",
        b"chunked\r\ntransfer-encoding: identity", b"chunked\r\ncontent-length: 5",
    ]  # fmt: skip
    body = b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    yield from _cases("coding", b"HTTP/1.1 200 OK\r\ntransfer-encoding: @" + body, rows)
    yield from _cases("coding of old", b"HTTP/1.0 200 OK\r\ntransfer-encoding: @" + body, rows[:2])


def _chunks() -> Iterator[Case]:
    rows: list[bytes] = [
        b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", b"0\r\n\r\n",
        b"1\r\na\r\n" * 50 + b"0\r\n\r\n", b"a\r\n0123456789\r\n0\r\n\r\n", b"A\r\n0123456789\r\n0\r\n\r\n",
        b"05\r\nhello\r\n0\r\n\r\n", b"0" * 12 + b"5\r\nhello\r\n0\r\n\r\n", b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n00\r\n\r\n", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n", b"5\r\nhel", b"5\r\n", b"5",
        b"", b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhell\r\n0\r\n\r\n", b"5\nhello\n0\n\n",
        b"5\r\nhello\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\n\n", b"5\rhello\r0\r\r",
        b"5 \r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n", b"5\t\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n", b"g\r\nhello\r\n0\r\n\r\n", b"\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n", b"5;\r\nhello\r\n0\r\n\r\n", b'5;a="b;c"\r\nhello\r\n0;x\r\n\r\n',
        b"5; a=b\r\nhello\r\n0\r\n\r\n", b"5 ;a=b\r\nhello\r\n0\r\n\r\n", b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
        b"5;a\x01b\r\nhello\r\n0\r\n\r\n", b"5;a\nb\r\nhello\r\n0\r\n\r\n", b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;\xff\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"a" * 1000 + b"\r\nhello\r\n0\r\n\r\n", b"5;" + b"a" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
        b"f" * 15 + b"\r\nhello", b"f" * 16 + b"\r\nhello", b"f" * 17 + b"\r\nhello", b"f" * 40 + b"\r\nhello",
        b"5\r\nhello\r\n0\r\nx: y\r\n\r\n", b"5\r\nhello\r\n0\r\nx: y\r\nz: a\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx\r\n\r\n", b"5\r\nhello\r\n0\r\nx : y\r\n\r\n", b"5\r\nhello\r\n0\r\n x: y\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n", b"5\r\nhello\r\n0\r\nx: a\x01b\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx: y\r\n", b"5\r\nhello\r\n0\r\ncontent-length: 9\r\n\r\n",
        b"5\r\nhello\r\n0\r\ntransfer-encoding: x\r\n\r\n", b"5\r\nhello\r\n0\r\nx: " + b"y" * 2000 + b"\r\n\r\n",
        b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 200 + b"\r\n", b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 2000 + b"\r\n",
        b"5\r\nhello\r\n0\r\n\r\nmore", b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n",
    ]  # fmt: skip
    yield from _cases("chunks", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n@", rows)


def _interim() -> Iterator[Case]:
    rows: list[bytes] = [
        b"100 Continue\r\n\r\n", b"102 Processing\r\n\r\n", b"103 Hints\r\nlink: </x>\r\n\r\n",
        b"199 x\r\n\r\n", b"100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
        b"100 x\r\ncontent-length: 0\r\n\r\n", b"100 x\r\ncontent-length: 5\r\n\r\nhello",
        b"101 Switching\r\n\r\n", b"101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    ]  # fmt: skip
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    yield from _cases("interim", b"HTTP/1.1 @" + answer, rows)
    yield from _cases("interim alone", b"HTTP/1.1 @", rows[:1])
    many = b"HTTP/1.1 100 x\r\n\r\n" * 30
    yield Case("interim thirty", many + answer)


def _whole() -> Iterator[Case]:
    rows: list[bytes] = [
        b"", b"connection: close\r\n", b"Connection: Close\r\n", b"connection: keep-alive\r\n",
        b"connection: x, close\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"keep-alive: timeout=5, max=100\r\n", b"keep-alive: timeout=soon\r\n",
        b"content-encoding: gzip\r\n", b"content-encoding: br\r\n", b"content-type: text/event-stream\r\n",
        b"location: http://127.0.0.1:1/\r\n", b"set-cookie: a=b\r\nset-cookie: c=d\r\n",
        b"X-A: 1\r\nx-a: 2\r\n", b"trailer: x\r\n", b"date: now\r\nserver: x\r\n",
    ]  # fmt: skip
    for version in (b"1.1", b"1.0"):
        start = b"HTTP/" + version + b" 200 OK\r\n@"
        yield from _cases(f"sized {version!r}", start + b"content-length: 2\r\n\r\nok", rows)
        yield from _cases(f"unsized {version!r}", start + b"\r\nok", rows)
    yield from _cases("moved", b"HTTP/1.1 302 x\r\n@content-length: 2\r\n\r\nok", rows[-5:-3])
    data = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
    yield from (Case(f"cut {at}", data[:at]) for at in (0, 1, 5, 9, 12, 17, 30, 65, 66, 67, 68, 70))
    yield from _cases("surplus", data + b"@", [b"x", b"\r\n", data, b"\x00" * 100])
    yield Case("large", data.replace(b": 5", b": 300000") + b"x" * 299_995)
    yield Case("small pieces", b"HTTP/1.1 200 OK\r\n\r\n" + b"data: x\n\n" * 500)


CASES = tuple(
    case
    for family in (
        _status_lines, _names, _values, _line_ends, _lengths, _codings, _chunks, _interim, _whole,
    )
    for case in family()
)  # fmt: skip
