"""Pages in a browser that ask the gateway."""

import aiohttp
import pytest

from cortex_gateway.middleware import Origins
from tests.fakes.gateway import gateway
from tests.fakes.upstream import ScriptedNode, streams, words

PAGE = "http://localhost:3000"


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((PAGE,), PAGE, PAGE),
        ((PAGE,), "http://evil.example", None),
        (("*",), "http://any.example", "*"),
        ((), PAGE, None),
    ],
)
async def test_only_pages_that_are_named_may_ask(
    origins: tuple[str, ...], origin: str, allowed: str | None
) -> None:
    """Fetch standard: the browser asks with OPTIONS first, and goes on if it may."""
    wants = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    async with (
        ScriptedNode(streams(words(1))) as node,
        gateway({"a": node.url}, wrap=lambda app: Origins(app, origins)) as g,
        aiohttp.ClientSession() as session,
    ):
        url = f"{g.url}/v1/chat/completions"
        async with session.options(url, headers={"origin": origin, **wants}) as first:
            before = first.headers.get("access-control-allow-origin")
            is_ok = first.status < 300
        body = {"model": "org/model", "messages": [{"role": "user", "content": "hi"}]}
        async with session.post(
            url, json={**body, "stream": True}, headers={"origin": origin}
        ) as then:
            after = then.headers.get("access-control-allow-origin")
            await then.read()

    assert before == after == allowed
    assert is_ok is (allowed is not None)


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ((), "http://evil.example", 403),
        ((), "null", 403),
        ((PAGE,), "http://evil.example", 403),
        ((PAGE,), PAGE, 404),
        (("*",), "http://evil.example", 404),
        ((), None, 404),
        ((), "own", 404),
    ],
)
async def test_pages_of_strangers_give_no_orders(
    origins: tuple[str, ...], origin: str | None, status: int
) -> None:
    """Fetch standard: a page may send a plain POST anywhere, and the browser names it."""
    async with (
        gateway({"a": "http://127.0.0.1:9"}, wrap=lambda app: Origins(app, origins)) as g,
        aiohttp.ClientSession() as session,
    ):
        headers = {} if origin is None else {"origin": g.url if origin == "own" else origin}
        # A node that is not there: whoever may ask is told so.
        url = f"{g.url}/admin/nodes/none/drain"
        async with session.post(url, headers=headers, data=b"{}") as answer:
            body = await answer.json()

    assert answer.status == status
    assert body["error"]["code"] == ("permission_denied" if status == 403 else "not_found")
