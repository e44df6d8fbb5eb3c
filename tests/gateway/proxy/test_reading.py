"""Bodies of requests, however they come."""

import asyncio
import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import given, strategies as st
from starlette.types import Message

from cortex_core.server.exchange import ClientGoneError
from cortex_gateway.proxy.call import read_body
from tests.fakes.gateway import MODEL, gateway
from tests.fakes.upstream import ScriptedNode, nodes, streams, words

pieces = st.lists(st.binary(max_size=40) | st.binary(max_size=40).map(bytearray), min_size=1)


async def read(pieces: list[bytes | bytearray], length: int | None, end: Message | None) -> bytes:
    """Read a body of some pieces, which ends with the last one or with `end`."""
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    if end is None:
        messages[-1]["more_body"] = False
    else:
        messages.append(end)
    coming = iter(messages)

    async def receive() -> Message:
        return next(coming)

    told = [] if length is None else [(b"content-length", b"%d" % length)]
    return await read_body({"type": "http", "headers": [(b"host", b"x"), *told]}, receive)


@given(pieces, st.booleans(), st.integers(0, 3))
def test_a_body_is_its_pieces(
    pieces: list[bytes | bytearray], is_announced: bool, missing: int
) -> None:
    """Ours: announced or not, and even if less came than that, it has nothing of ours in it."""
    expected = b"".join(pieces)

    body = asyncio.run(read(pieces, len(expected) + missing if is_announced else None, None))

    assert type(body) is bytes
    assert body == expected


@given(pieces)
def test_a_caller_who_leaves_has_no_body(pieces: list[bytes | bytearray]) -> None:
    """Ours: half a body is none."""
    with pytest.raises(ClientGoneError):
        asyncio.run(read(pieces, 1000, {"type": "http.disconnect"}))


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
async def test_megabytes_pass_as_they_were_written(is_chunked: bool) -> None:
    """Ours: through both sides of the gateway."""
    fields = {"messages": [{"role": "user", "content": "größer " * 700_000}], "model": MODEL}
    body = json.dumps(fields, ensure_ascii=False, indent=3).encode()

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 99_999):
            yield body[start : start + 99_999]

    async with (
        nodes(node := ScriptedNode(streams(words(1)))),
        gateway({"a": node.url}) as g,
        aiohttp.ClientSession() as session,
        session.post(
            f"{g.url}/v1/chat/completions", data=in_pieces() if is_chunked else io.BytesIO(body)
        ) as answer,
    ):
        assert answer.status == 200
        await answer.read()

    assert node.wires[0].body == body
