"""Whatever a body is, the gateway answers in the caller's dialect, and never with a 500."""

import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.gateway import MODEL, gateway
from tests.fakes.upstream import ScriptedNode
from tests.gateway.responses.asking import completion

PATHS = (
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/conversations",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/api/chat",
    "/api/generate",
    "/api/show",
)

VALUES: tuple[Any, ...] = (None, True, 1, -1, 1e300, "", "x", [], [None], [[]], [{}], {}, {"a": {}})

MEMBERS = (
    "messages",
    "input",
    "system",
    "tools",
    "tool_choice",
    "max_tokens",
    "stream",
    "thinking",
    "reasoning",
    "text",
    "output_config",
    "response_format",
    "metadata",
    "stop",
    "stop_sequences",
    "previous_response_id",
    "conversation",
    "background",
    "items",
    "options",
    "functions",
)


def bodies() -> Iterator[bytes]:
    """Yield what is no JSON, no object, no request, and requests with one member gone wrong."""
    yield from (b"", b"null", b"[]", b"1", b'"x"', b"{", b"{}", b"\xff", b'{"model":1}')
    yield b'{"model":"' + b"x" * 10_000 + b'"}'
    yield b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    yield b'{"model":"m","messages":' + b"[" * 100_000
    whole = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "input": "hi",
        "prompt": "hi",
        "max_tokens": 10,
    }
    for member in MEMBERS:
        for value in VALUES:
            yield json.dumps({**whole, member: value}).encode()
    for value in VALUES:
        yield json.dumps({**whole, "messages": [{"role": "user", "content": value}]}).encode()
        yield json.dumps({**whole, "input": [{"role": "user", "content": value}]}).encode()
        yield json.dumps({**whole, "input": [{"type": value, "content": "x"}]}).encode()


@pytest.mark.parametrize("path", PATHS)
async def test_no_body_is_our_mistake(path: str) -> None:
    """Issue: fuzzed bodies never give a 500."""
    async with (
        ScriptedNode(completion("hello")) as node,
        gateway({"a": node.url}) as g,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
    ):
        for body in bodies():
            async with session.post(g.url + path, data=body) as answer:
                told = await answer.read()
            # The node's answer is a chat completion, which is nothing for some paths: 502.
            assert answer.status in (200, 400, 404, 413, 422, 502), (body[:200], told[:500])
            if answer.status != 200:
                assert json.loads(told)["error"], told
