"""A head that is known is read as one that is not, whoever sent it before."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import RequestError
from cortex_core.server.guard import Guard
from cortex_core.server.heads import MAX_KNOWN, MAX_KNOWN_BYTES, Heads
from cortex_core.server.http1 import Request, parse_head
from tests.server.apps import echo
from tests.server.harness import request, serving
from tests.server.http_corpus import CASES

LENGTHS = (b"Content-Length: ", b"content-length: ", b"CONTENT-LENGTH: ", b"content-length:")
LINES = (
    *(name + number for name in LENGTHS for number in (b"0", b"5", b"07", b"", b"+5", b"5, 6", b"x")),
    b"content-length: " + b"1" * 18,
    b"content-length: " + b"1" * 19,
    b"host: x",
    b"Host: y",
    b"connection: close",
    b"expect: 100-continue",
    b"transfer-encoding: chunked",
    b"x: content-length: 5",
    b"x-request-id: abc",
    b"x: a\0b",
    b"",
)  # fmt: skip
HEADS = tuple(dict.fromkeys(case.data.partition(b"\r\n\r\n")[0] for case in CASES))


def outcome(read: Callable[[bytes], Request], head: bytes) -> tuple[object, ...]:
    """Return all that a head comes to, but for what is remembered with it."""
    try:
        found = read(head)
    except RequestError as error:
        return (type(error), error.message)
    fields = (name for name in Request.__struct_fields__ if name != "memo")
    return tuple(getattr(found, name) for name in fields)


def test_corpus_is_read_alike() -> None:
    """Ours: every case against the parser, three times each, among all the others."""
    heads = Heads()
    for _ in range(3):
        for head in HEADS:
            assert outcome(heads.read, head) == outcome(parse_head, head)


heads_of_lines = st.builds(
    lambda line, rest: b"\r\n".join((line, *rest)),
    st.sampled_from((b"POST /a HTTP/1.1", b"POST /b?c HTTP/1.0", b"get / HTTP/2.0", b"")),
    st.lists(st.sampled_from(LINES), max_size=5),
)


@given(st.lists(heads_of_lines, max_size=12))
def test_any_heads_are_read_alike(sent: Sequence[bytes]) -> None:
    """Property: what was read before changes nothing."""
    heads = Heads()
    for head in (*sent, *sent):
        assert outcome(heads.read, head) == outcome(parse_head, head)


def test_what_is_kept_is_bounded() -> None:
    """Ours: a header that differs with each request makes every head a new one."""
    heads = Heads()
    long = b"x" * MAX_KNOWN_BYTES
    for number in range(MAX_KNOWN + 5):
        heads.read(b"POST / HTTP/1.1\r\nhost: x\r\nn: %d\r\ncontent-length: 5" % number)
        heads.read(b"POST / HTTP/1.1\r\nhost: x\r\nn: %b\r\ncontent-length: 5" % long)

    assert len(heads._known) == MAX_KNOWN


def test_headers_are_the_request_s_own() -> None:
    """Ours: an app may do with its list what it likes."""
    heads, head = Heads(), b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5"
    for _ in range(3):
        found = heads.read(head)
        assert found.headers == [(b"host", b"x"), (b"content-length", b"5")]
        found.headers.clear()


async def test_every_request_has_its_own_length_and_limit() -> None:
    """Ours: the number is no part of what is known, and the bound is the one of the moment."""
    answers = []
    async with serving(echo) as server:
        guard = server.listeners[0].app
        assert isinstance(guard, Guard)
        client = await server.connect()
        for size, limit in ((1, 99), (22, 99), (3, 99), (22, 22), (22, 21)):
            guard.limit_bodies(limit)
            await client.send(posted(size))
            answers.append(await client.answer())

    assert [answer.status for answer in answers] == [200, 200, 200, 200, 413]
    assert [len(answer.body) for answer in answers[:-1]] == [1, 22, 3, 22]


@pytest.mark.parametrize("brought", ["abc", None])
async def test_ids_are_not_shared(brought: str | None) -> None:
    """Ours: the caller's own is part of the head, one of ours is not."""
    lines = [] if brought is None else [f"x-request-id: {brought}"]
    async with serving(echo) as server:
        client = await server.connect()
        found = []
        for _ in range(3):
            await client.send(posted(1, *lines))
            found.append((await client.answer()).headers["x-request-id"])

    assert len(set(found)) == (1 if brought else 3)
    assert brought is None or found[0] == brought


def posted(size: int, *lines: str) -> bytes:
    return request("POST", "/", *lines, f"content-length: {size}") + b"x" * size
