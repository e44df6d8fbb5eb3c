"""Our HTTP/1 layer against h11, on which nothing of ours rests any more.

docs/explanation/http-layer.md lists where they differ and why; the corpus says in which cases.
"""

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, strategies as st

from tests.docs.tables import rows_of
from tests.server.http_corpus import CASES, Case
from tests.server.http_layers import Outcome, Seen, through_h11, through_ours

BY_KIND = {
    kind: [case for case in CASES if case.name.split(" ")[0] == kind]
    for kind in sorted({case.name.split(" ")[0] for case in CASES})
}
by_kind = pytest.mark.parametrize("cases", BY_KIND.values(), ids=BY_KIND)
# Longer ones come in pieces of more than a byte.
SHORT_BYTES = 3000


async def ours(*pieces: bytes) -> Outcome:
    async with asyncio.timeout(30):
        return await through_ours(pieces)


def test_the_corpus_is_large() -> None:
    """Issue 6: at least 500."""
    assert len({case.data for case in CASES}) > 900
    assert not [name for name, count in Counter(c.name for c in CASES).items() if count > 1]


@by_kind
async def test_it_differs_from_h11_where_the_page_says_so(cases: list[Case]) -> None:
    """What the app sees, what becomes of the connection, and with what status."""
    for case in cases:
        differs = through_h11(case.data) != await ours(case.data)
        assert differs == bool(case.difference), case.name


def test_the_page_lists_all_differences_and_no_other() -> None:
    """docs/explanation/http-layer.md."""
    listed = [row[0] for row in rows_of("../explanation/http-layer")]

    assert sorted(listed) == sorted({case.difference for case in CASES} - {""})


@by_kind
async def test_it_matters_not_how_bytes_arrive(cases: list[Case]) -> None:
    """Byte by byte, or in pieces of an odd size, it is the same as at once."""
    for case in cases:
        size = 1 if len(case.data) <= SHORT_BYTES else 997
        pieces = [case.data[at : at + size] for at in range(0, len(case.data), size)]

        assert await ours(*pieces) == await ours(case.data), case.name


@pytest.mark.parametrize("second", ["get", "chunks", "inner", "smuggler", "bad"])
@pytest.mark.parametrize("first", ["post", "chunks", "inner"])
async def test_it_matters_not_where_they_are_split(first: str, second: str) -> None:
    """Two packets, with every byte as the first of the second."""
    (data,) = [case.data for case in CASES if case.name == f"{first}, {second}"]
    whole = await ours(data)

    for at in range(1, len(data)):
        assert await ours(data[:at], data[at:]) == whole


# What may be refused of what h11 takes, by rows of the page.
EXCUSES = {
    "bare-lf": rb"(?<!\r)\n",
    "folded-line": rb"\n[ \t]",
    "same-length-twice": rb"(?is)content-length.*(?:content-length|,)",
    "status-of-codings": rb"(?i)transfer-encoding",
    "space-in-chunks": rb"[0-9a-fA-F][ \t]+\r\n",
    "framing-in-trailers": rb"(?is)0\r\n.*(?:content-length|transfer-encoding)",
    "huge-chunk": rb"[0-9a-fA-F]{16}",
    "control-in-chunks": rb"[^\t\r\n -~\x80-\xff]",
}
MARKS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b";", b"0", b"5", b"f", b"\x00", b"\x01",
    b"\x0b", b"\x7f", b"\xff", b"/", b"HTTP/1.1", b"HTTP/1.0", b"host: x\r\n",
    b"content-length: 5\r\n", b"Content-Length: 3\r\n", b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"GET / HTTP/1.1\r\n", b"chunked",
]  # fmt: skip
SEEDS = [case.data for case in CASES if len(case.data) < 300]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw one to three messages of the corpus, with up to six changes."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 12)))
        byte = st.binary(min_size=1, max_size=1)
        new = st.one_of(st.sampled_from(MARKS), st.just(b""), st.just(data[at:end] * 2), byte)
        data = data[:at] + draw(new) + data[end:]
    return data


def alike(seen: Sequence[Seen]) -> list[Seen]:
    """Return requests without what `method-case` and `coding-case` of the page allow."""
    return [
        msgspec.structs.replace(
            one,
            method=one.method.upper(),
            headers=tuple(
                (name, value.lower() if name == b"transfer-encoding" else value)
                for name, value in one.headers
            ),
        )
        for one in seen
    ]


def complete(seen: Sequence[Seen]) -> list[Seen]:
    return [one for one in alike(seen) if one.is_complete]


@given(data=mutated(), splits=st.lists(st.integers(0, 1000), max_size=6))
async def test_any_bytes_are_read_as_h11_does_or_refused(data: bytes, splits: list[int]) -> None:
    """Never more than h11 takes, never in another way, and less only for a reason of the page."""
    edges = [0, *sorted({at for at in splits if at < len(data)}), len(data)]
    theirs = through_h11(data)

    mine = await ours(*[data[a:b] for a, b in itertools.pairwise(edges)])

    if (alike(mine.seen), mine.end[:7]) == (alike(theirs.seen), theirs.end[:7]):
        return
    served = complete(mine.seen)
    assert served == complete(theirs.seen)[: len(served)]
    assert mine.end.startswith("refused")
    assert any(re.search(pattern, data) for pattern in EXCUSES.values()), (mine, theirs)
