"""Requests, good, odd and hostile, and in which of them our layer differs from h11.

A case that differs bears the name of a row of docs/explanation/http-layer.md.
"""

from collections.abc import Iterator

import msgspec

HOST = b"host: x\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"


class Case(msgspec.Struct, frozen=True):
    """What one caller sends on a connection."""

    name: str
    data: bytes
    difference: str = ""


_Row = tuple[bytes, str] | bytes
"""What varies, and how ours differs, if it does."""


def _cases(kind: str, pattern: bytes, rows: list[_Row]) -> Iterator[Case]:
    """Put each of `rows` in the place of `@` in `pattern`."""
    for number, row in enumerate(rows):
        varying, difference = row if isinstance(row, tuple) else (row, "")
        shown = ascii(varying)[2:-1][:40]
        yield Case(f"{kind} {number}: {shown}", pattern.replace(b"@", varying), difference)


def _methods() -> Iterator[Case]:
    good = (
        b"GET HEAD POST PUT DELETE OPTIONS PATCH PROPFIND QUERY X-Y !#$%&'*+-.^_`|~9 CONNECT TRACE"
    )
    rows: list[_Row] = [*good.split(), b"A" * 300]
    rows += [(b"get", "method-case"), (b"Post", "method-case")]
    rows += [b"G T", b"GET ", b" GET", b"GET\t", b"G\x00T", b"G\xc3\x89T", b"GE:T", b"", b"GET\r"]
    rows += [b"G" + bytes([mark]) + b"T" for mark in b'"(),/:;<=>?@[\\]{}\x7f\x80']
    yield from _cases("method", b"@ / HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT, rows)


def _targets() -> Iterator[Case]:
    rows: list[_Row] = [
        b"/", b"/a/b", b"/a?b=c", b"/?", b"/a??b", b"/%41%2f", b"/%zz", b"/%", b"/a;b", b"//x",
        b"/../a", b"/a#b", b"/~", b'/"<>\\^`{|}', b"/" + b"a" * 5000, b"/?" + b"q" * 5000,
        b"*", b"http://x/", b"http://user@x:1/a", b"x:443", b"x", b"?", b"#", b"http:/x", b".",
        b"", b"/a b", b"/ ", b" /", b"/\t", b"/\x00", b"/\x01", b"/\x7f", b"/\x80", b"/\xc3\xa4",
        b"/\xff", b"/a\rb", b"/\x0b", b"/a\x1fb", b"/a\x20HTTP/1.1\x20",
    ]  # fmt: skip
    yield from _cases("target", b"GET @ HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT, rows)


def _versions() -> Iterator[Case]:
    rows: list[_Row] = [
        b" HTTP/1.1", b" HTTP/1.0", b" HTTP/0.9", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/9.9",
        b" HTTP/1", b" HTTP/1.", b" HTTP/.1", b" HTTP/1.1.1", b" HTTP/1.10", b" HTTP/01.1",
        b" HTTP/1,1", b" HTTP/1.1 ", b"  HTTP/1.1", b"\tHTTP/1.1", b" HTTP/ 1.1", b" HTTP /1.1",
        b" http/1.1", b" Http/1.1", b" HTTPS/1.1", b" ICE/1.0", b" RTSP/1.0", b" HTTP/-1.1",
        b" HTTP/1.1\x00", b" HTTP/\xb9.1", b" HTTP1.1", b" 1.1", b" ", b"", b" HTTP/1.1 x",
    ]  # fmt: skip
    yield from _cases("version", b"GET /@\r\n" + HOST + b"\r\n" + NEXT, rows)
    yield from _cases("version of a source", b"SOURCE /@\r\n" + HOST + b"\r\n", rows[-9:])


def _names() -> Iterator[Case]:
    rows: list[_Row] = [b"x", b"X-Y", b"x_y", b"!#$%&'*+-.^_`|~9", b"x" * 5000, b"X" * 3]
    rows += [b"", b" x", b"x ", b"\tx", b"x\t", b"x y", b"x\x00", b"\xc3\xa4", b"x\r"]
    rows += [b"x" + bytes([mark]) + b"y" for mark in b'"(),/;<=>?@[\\]{}\x7f\x80\xff\x01\x0b\x1f']
    rows += [b"Content_Length", b"transfer_encoding", b"content-length\x00", b"content-length "]
    after = [
        (r, "folded-line") if r in (b" x", b"\tx") else r for r in rows if isinstance(r, bytes)
    ]
    yield from _cases("name", b"GET / HTTP/1.1\r\n" + HOST + b"@: 1\r\n\r\n" + NEXT, after)
    yield from _cases("first name", b"GET / HTTP/1.1\r\n@: 1\r\n" + HOST + b"\r\n" + NEXT, rows)
    lines: list[_Row] = [
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
    yield from _cases("line", b"GET / HTTP/1.1\r\n" + HOST + b"@\r\n\r\n" + NEXT, lines)


def _values() -> Iterator[Case]:
    rows: list[_Row] = [b"a" + bytes([mark]) + b"b" for mark in [*range(32), 127] if mark != 10]
    rows += [(b"a\nb", ""), (b"a\nb: c", "bare-lf"), (b"a\r\nb: c", ""), (b"a\n\nb", "bare-lf")]
    rows += [b"a\r\n\r\nb", b"\x80", b"\xff", b"\xc3\xa4", b"", b" ", b"\t", b" a ", b"\ta\t"]
    rows += [b"a  b", b"a\tb", b'"a"', b"a,b", b"\x7f", b"\x01", b"a" * 30_000, b"a" * 33_000]
    yield from _cases("value", b"GET / HTTP/1.1\r\n" + HOST + b"x: @\r\n\r\n" + NEXT, rows)


def _line_ends() -> Iterator[Case]:
    rows: list[_Row] = [b"\r\n", (b"\n", "bare-lf"), b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\t"]
    place = b"GET / HTTP/1.1@" + HOST + b"\r\n" + NEXT
    yield from _cases("end of the request line", place, rows)
    rows = [b"\r\n", (b"\n", "bare-lf"), b"\n\r", b"\r\r\n"]
    rows += [
        (b"\r\n b", "folded-line"),
        (b"\r\n\tb", "folded-line"),
        (b"\r\n  b\r\n c", "folded-line"),
    ]
    place = b"GET / HTTP/1.1\r\n" + HOST + b"x: a@y: b\r\n\r\n" + NEXT
    yield from _cases("end of a header", place, rows)
    rows = [b"\r\n\r\n", (b"\r\n\n", "bare-lf"), (b"\n\r\n", "bare-lf"), (b"\n\n", "bare-lf")]
    rows += [b"\r\r", b"\r\n\r", b"\r\n\r\r\n"]
    yield from _cases("end of the head", b"GET / HTTP/1.1\r\nhost: x@" + NEXT, rows)
    rows = [b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\t", b"\x00", b"\r", b"\xef\xbb\xbf", b"HELO\r\n"]
    rows += [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"\x05\x01\x00"]
    rows += [b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    yield from _cases("before a request", b"@" + NEXT, rows)
    yield from _cases("between requests", NEXT + b"@" + NEXT, rows)


def _hosts() -> Iterator[Case]:
    rows: list[_Row] = [
        b"", b"host: x\r\n", b"Host: x\r\n", b"HOST: x\r\n", b"host:\r\n", b"host: x:80\r\n",
        b"host: [::1]\r\n", b"host: x\r\nhost: y\r\n", b"host: x\r\nHost: x\r\n", b"host: a b\r\n",
        b"host: x/y\r\n", b"host: x\x00y\r\n", b"host : x\r\n", b"hos: x\r\n", b"xhost: x\r\n",
    ]  # fmt: skip
    for version in (b"1.1", b"1.0"):
        yield from _cases(f"host {version!r}", b"GET / HTTP/%b\r\n@\r\n" % version + NEXT, rows)


def _lengths() -> Iterator[Case]:
    rows: list[_Row] = [
        b"5", b"0", b"05", b"0000000005", b"4", b"6", b"500", (b"5,5", "same-length-twice"),
        (b"5, 5", "same-length-twice"), b"5,6", b"5,", b",5", b"+5", b"-5", b"-0", b"0x5", b"5.0",
        b"5e0", b"", b" ", b"a", b"5a", b"5 5", b"5;", b'"5"', b"\xd9\xa5", b"\xb2", b"5\x00",
        b"1" * 18, b"1" * 19, b"1" * 20, b"1" * 21, b"0" * 18 + b"5", b"9" * 17, b"67108864",
        b"67108865", b"infinity", b"0b1", b"5_0", b"1_000", b" 5 ", b"\t5\t", b"5\x0b",
        b"5\r\ncontent-length: 6", (b"5\r\ncontent-length: 5", "same-length-twice"),
        b"5\r\nCONTENT-LENGTH: 05", b"5\r\ncontent_length: 6", b"0\r\ncontent-length: 5",
    ]  # fmt: skip
    head = b"POST / HTTP/1.1\r\n" + HOST
    yield from _cases("length", head + b"content-length: @\r\n\r\nHELLO" + NEXT, rows)
    old = b"POST / HTTP/1.0\r\n" + HOST
    yield from _cases("length of 1.0", old + b"content-length: @\r\n\r\nHELLO" + NEXT, rows[:12])
    yield from _cases("length of a get", NEXT[:-2] + b"content-length: @\r\n\r\nHELLO", rows[:7])


def _codings() -> Iterator[Case]:
    refused = "status-of-codings"
    rows: list[_Row] = [b"chunked", (b"Chunked", "coding-case"), (b"CHUNKED", "coding-case")]
    rows += [b" chunked ", b"\tchunked\t", b"\x0bchunked", b"chunked\x0c", b"chunked\x00"]
    rows += [
        (row, refused)
        for row in (
            b"chunked,", b",chunked", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip",
            b"identity", b"xchunked", b"chunkedx", b"chunked;q=1", b'"chunked"', b"chun ked", b"",
            b"chunked\r\ntransfer-encoding: chunked", b"chunked\r\ntransfer-encoding: identity",
            b"identity\r\ntransfer-encoding: chunked", b"\xa0chunked", b"c\xd0\xbdunked",
        )
    ]  # fmt: skip
    both: list[_Row] = [b"chunked\r\ncontent-length: 5", b"chunked\r\ncontent-length: 0"]
    both += [b"chunked\r\nContent-Length: 300", b"chunked\r\ntransfer_encoding: x"]
    both += [(b"identity\r\ncontent-length: 5", refused), (b"x\r\ncontent-length: 15", refused)]
    body = b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + NEXT
    head = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: @"
    yield from _cases("coding", head + body, rows + both)
    first = b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: @\r\n" + HOST
    yield from _cases("length and coding", first + body[2:], [b"chunked", b"Chunked", *rows[3:5]])
    old: list[_Row] = [b"chunked", b"Chunked", (b"gzip", refused), (b"", refused)]
    yield from _cases("coding of 1.0", head.replace(b"1.1", b"1.0") + body, old)


def _chunks() -> Iterator[Case]:
    long = "long-line-between-chunks"
    rows: list[_Row] = [
        b"5",
        b"05",
        b"0005",
        b"5;a",
        b"5;a=b",
        b'5;a="b"',
        b"5;",
        b"5;;",
        b"5;\xff",
    ]
    rows += [b"5 ;a", b"5\t;a"]
    rows += [(b"5 ", "space-in-chunks"), (b"5\t", "space-in-chunks"), b" 5", b"\t5", b"5;a "]
    rows += [b"5;" + b"a" * 500, (b"5;" + b"a" * 2000, long), (b"5;" + b"a" * 20_000, long)]
    rows += [(b"5;\x01", "control-in-chunks"), (b"5;a\x00b", "control-in-chunks"), b"5;a\nb"]
    rows += [b"", b";a", b"g", b"5g", b"0x5", b"+5", b"-5", b"5.", b"5,", b"5a;", b"\xb5", b"5\x00"]
    rows += [b"F" * 15, (b"f" * 16, "huge-chunk"), (b"f" * 20, "huge-chunk"), b"f" * 21]
    rows += [(b"0" * 15 + b"5", "huge-chunk"), b"0" * 20 + b"5", b"4", b"6", b"a", b"A", b"5\r"]
    head = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
    yield from _cases("chunk", head + b"@\r\nhello\r\n0\r\n\r\n" + NEXT, rows)
    ends: list[_Row] = [b"\r\n", b"\n", b"\r", b"", b"\r\r\n", b"\n\r\n", b"X", b"\r\n\r\n"]
    yield from _cases("end of a size", head + b"5@hello\r\n0\r\n\r\n" + NEXT, ends)
    yield from _cases("end of a chunk", head + b"5\r\nhello@0\r\n\r\n" + NEXT, ends)
    last: list[_Row] = [b"0", b"00", b"0;a", b"000000", (b"0 ", "space-in-chunks"), b"-0", b"0x0"]
    yield from _cases("last chunk", head + b"1\r\na\r\n@\r\n\r\n" + NEXT, last)
    whole: list[_Row] = [b"", b"0\r\n\r\n", b"1\r\na\r\n" * 50 + b"0\r\n\r\n", b"0\r\n", b"0\r\n\r"]
    whole += [b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r", b"5", b"5\r", b"5\r\nhello\r\n0"]
    yield from _cases("body in chunks", head + b"@", whole)


def _trailers() -> Iterator[Case]:
    control, framing = "control-in-trailers", "framing-in-trailers"
    rows: list[_Row] = [
        b"x: y\r\n", b"x:\r\n", b"x: y\r\nz: a\r\n", b"host: z\r\n", b"content-length: a\r\n",
        (b"transfer-encoding: gzip\r\n", "status-of-codings"), (b"content-length: 5\r\n", framing),
        (b"Transfer-Encoding: chunked\r\n", framing), b"x\r\n", b"x y: z\r\n", b": x\r\n", b" x\r\n",
        (b"x: y\r\n z\r\n", "folded-line"), (b"x: y\n", "bare-lf"), (b"x: a\x01b\r\n", control),
        b"x: a\x00b\r\n", b"x: a\rb\r\n", (b"x: " + b"a" * 2000 + b"\r\n", "long-trailers"),
        (b"x: y\r\n" * 3000, "long-trailers"), b"x\x00: y\r\n", b"\xff: y\r\n", b"x : y\r\n",
    ]  # fmt: skip
    head = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
    yield from _cases("trailer", head + b"1\r\na\r\n0\r\n@\r\n" + NEXT, rows)


def _connections() -> Iterator[Case]:
    rows: list[_Row] = [
        b"close", b"Close", b"keep-alive", b"close, x", b"x,close", b"x, close ,y", b"clo se",
        b"closed", b'"close"', b"", b",", b"upgrade", b"keep-alive, close",
        b"x\r\nconnection: close", b"close\r\nconnection: keep-alive", b"close\x00", b"host",
        b"upgrade\r\nupgrade: h2c", b"Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: A",
        b"upgrade\r\nupgrade: websocket", b"x, Upgrade\r\nupgrade: WebSocket", b"upgrade: websocket",
        b"x\r\nupgrade: websocket", b"upgrade\r\nupgrade: TLS/1.3", b"upgrade\r\nupgrade: a, b",
    ]  # fmt: skip
    for version in (b"1.1", b"1.0"):
        head = b" / HTTP/%b\r\n" % version + HOST + b"connection: @\r\n"
        yield from _cases(f"get {version!r}, connection", b"GET" + head + b"\r\n" + NEXT, rows)
        post = b"POST" + head + b"content-length: 5\r\n\r\nhello" + NEXT
        yield from _cases(f"post {version!r}, connection", post, rows)


def _expectations() -> Iterator[Case]:
    idle = "continue-without-a-body"
    rows: list[_Row] = [b"100-continue", b"100-Continue", b"x, 100-continue", b"bogus", b"", b"100"]
    post = b"POST / HTTP/1.1\r\n" + HOST + b"expect: @\r\ncontent-length: 5\r\n\r\n"
    yield from _cases("expecting, body", post + b"hello" + NEXT, rows)
    yield from _cases("expecting, no body yet", post, rows)
    get = b"GET / HTTP/1.1\r\n" + HOST + b"expect: @\r\n\r\n" + NEXT
    yield from _cases("expecting nothing", get, [(b"100-continue", idle), (b"100-Continue", idle)])
    yield from _cases("expecting no such thing", get, rows[3:])
    yield from _cases("1.0 expecting", post.replace(b"1.1", b"1.0") + b"hello", rows)


def _sizes() -> Iterator[Case]:
    many: list[_Row] = [
        b"".join(b"x-%d: 1\r\n" % n for n in range(count)) for count in (98, 99, 100)
    ]
    large: list[_Row] = [
        b"x: " + b"a" * size + b"\r\n" for size in (32_700, 32_800, 50_000, 65_000)
    ]
    large += [b"x: " + b"a" * 70_000 + b"\r\n", b"y: " + b"a" * 9_000 + b"\r\n"]
    head = b"GET / HTTP/1.1\r\n" + HOST + b"@\r\n" + NEXT
    yield from _cases("headers", head, many)
    yield from _cases("large headers", head, large)
    lines: list[_Row] = [b"/" + b"a" * 30_000, b"/" + b"a" * 60_000]
    lines += [(b"/" + b"a" * 70_000, "long-heads")]
    yield from _cases("long target", b"GET @ HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT, lines)
    parts: list[_Row] = [NEXT[:cut] for cut in range(len(NEXT))]
    yield from _cases("part of a request", b"@", parts)


def _mixes() -> Iterator[Case]:
    post = b"POST /p HTTP/1.1\r\n" + HOST
    messages = {
        "get": NEXT,
        "head": NEXT.replace(b"GET", b"HEAD"),
        "post": post + b"content-length: 5\r\n\r\nhello",
        "empty": post + b"content-length: 0\r\n\r\n",
        "chunks": post
        + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nt: u\r\n\r\n",
        "last": NEXT[:-2] + b"connection: close\r\n\r\n",
        "old": b"GET /old HTTP/1.0\r\n\r\n",
        "smuggler": post + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "bad": b"GET\r\n\r\n",
        "inner": post + b"content-length: %d\r\n\r\n" % len(NEXT) + NEXT,
    }
    for first, one in messages.items():
        for second, other in messages.items():
            yield Case(f"{first}, {second}", one + other)
            yield Case(f"{first}, {second}, {first}", one + other + one)


def _all() -> Iterator[Case]:
    makers = (
        _methods, _targets, _versions, _names, _values, _line_ends, _hosts, _lengths, _codings,
        _chunks, _trailers, _connections, _expectations, _sizes, _mixes,
    )  # fmt: skip
    for maker in makers:
        yield from maker()


CASES = tuple(_all())
