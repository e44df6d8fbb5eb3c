"""What our client takes for an answer, against aiohttp, on which no request of a caller rests.

docs/explanation/http-client.md lists where they differ and why; the corpus says in which cases.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, strategies as st

from cortex_core.routing.retry import Failure
from tests.docs.tables import rows_of
from tests.gateway.clients.answer_corpus import CASES, Case
from tests.gateway.clients.answer_readers import (
    Outcome,
    in_pieces,
    through_aiohttp,
    through_ours,
)

BY_KIND = {
    kind: [case for case in CASES if case.name.split(" ")[0] == kind]
    for kind in sorted({case.name.split(" ")[0] for case in CASES})
}
by_kind = pytest.mark.parametrize("cases", BY_KIND.values(), ids=BY_KIND)
# Longer ones come in pieces of more than a byte.
SHORT_BYTES = 3000


@asynccontextmanager
async def answering(cases: Sequence[Case]) -> AsyncIterator[str]:
    """Answer a request for `/N` with the case of that number, and close."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b"{}"))
            writer.write(cases[int(head.split(b" ")[1][1:])].data)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        async with asyncio.timeout(60):
            yield f"http://{host}:{port}"
    finally:
        server.close()


def test_the_corpus_is_large() -> None:
    """Every case is another one."""
    assert len({case.data for case in CASES}) > 400
    assert not [name for name, count in Counter(c.name for c in CASES).items() if count > 1]


@by_kind
async def test_it_differs_from_aiohttp_where_the_page_says_so(cases: list[Case]) -> None:
    """Status, headers, body, and how it failed."""
    async with answering(cases) as url:
        for number, case in enumerate(cases):
            theirs = await through_aiohttp(f"{url}/{number}")
            ours = await through_ours(f"{url}/{number}")

            assert (ours != theirs) == bool(case.difference), case.name


def test_the_page_lists_all_differences_and_no_other() -> None:
    """docs/explanation/http-client.md."""
    listed = [row[0] for row in rows_of("../explanation/http-client")]

    assert sorted(listed) == sorted({case.difference for case in CASES} - {""})


@by_kind
async def test_it_matters_not_how_bytes_arrive(cases: list[Case]) -> None:
    """Byte by byte, or split at random, it is the same as at once, and the same as over a socket."""
    async with answering(cases) as url:
        for number, case in enumerate(cases):
            whole = await through_ours(f"{url}/{number}")
            size = 1 if len(case.data) <= SHORT_BYTES else 997
            pieces = [case.data[at : at + size] for at in range(0, len(case.data), size)]

            assert await in_pieces([case.data]) == whole, case.name
            assert await in_pieces(pieces) == whole, case.name
            for _ in range(3):
                assert await in_pieces(split(case.data, case.name)) == whole, case.name


def split(data: bytes, seed: str) -> list[bytes]:
    """Cut `data` at some places."""
    places = sorted(random.Random(seed).sample(range(len(data) + 1), min(len(data), 4)))
    return [data[at:end] for at, end in zip([0, *places], [*places, len(data)], strict=True)]


GOOD = (
    b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n10;a=b\r\n0123456789abcdef\r\n1\r\n\n\r\n0\r\nz: a\r\n\r\n"
)


def test_it_matters_not_where_it_is_split_once() -> None:
    """Two packets, with every byte as the first of the second."""

    async def check() -> None:
        whole = await in_pieces([GOOD])
        assert whole.body == b"hello0123456789abcdef\n"
        for at in range(1, len(GOOD)):
            assert await in_pieces([GOOD[:at], GOOD[at:]]) == whole

    asyncio.run(check())


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_chunks_carry_what_was_put_in_however_they_arrive(
    parts: list[bytes], data: st.DataObject
) -> None:
    """RFC 9112, section 7.1."""
    written = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + written + b"0\r\n\r\n"
    places = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[at:end] for at, end in zip([0, *places], [*places, len(answer)], strict=True)]

    outcome = asyncio.run(in_pieces(pieces))

    assert outcome == Outcome(200, (("transfer-encoding", "chunked"),), b"".join(parts))


@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 40), st.data())
def test_whatever_comes_is_an_answer_or_a_failure(
    noise: bytes, at: int, dropped: int, data: st.DataObject
) -> None:
    """Ours: the same however it is split, and never an exception of another kind."""
    answer = GOOD[:at] + noise + GOOD[at + dropped :]
    place = data.draw(st.integers(0, len(answer)))

    whole = asyncio.run(in_pieces([answer]))

    assert asyncio.run(in_pieces([answer[:place], answer[place:]])) == whole
    assert whole.status >= 200 or whole.failure in (Failure.BAD_ANSWER, Failure.CUT_BEFORE_ANSWER)
