"""Every answer names its request; callers may bring a name of their own."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from cortex_core.ids import RequestId
from cortex_core.server.exchange import request_id_of
from cortex_core.server.guard import Guard
from cortex_core.server.http1 import Request
from cortex_core.server.request_id import accepted_request_id, random_request_id
from cortex_core.server.seam import CONNECTION_KEY
from tests.server.apps import hello
from tests.server.harness import get, serving


async def show_id(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the id that the app sees, and with one of the app's own in the headers."""
    if scope["type"] != "http":
        return
    headers = [(b"X-Request-Id", b"from-upstream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": request_id_of(scope).encode()})


async def test_made_id_is_given_to_app_and_caller() -> None:
    """contracts.md: `x-request-id` on every answer, once."""
    async with serving(show_id) as server:
        client = await server.connect()
        await client.send(get())
        head = await client.until(b"\r\n\r\n")
        made = head.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0]

        assert head.lower().count(b"x-request-id") == 1
        assert made.startswith(b"req_")
        assert len(made) == 28
        assert made in await client.until(b"0\r\n\r\n")


class Idle:
    """A connection on which nothing more comes."""

    refusal = None
    unsent_bytes = 0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.request = Request(method="GET", target=b"/", version="1.1", headers=[])

    def listen(self, listener: object) -> None:
        """Say nothing."""

    def write(self, data: bytes) -> bool:
        """Take everything."""
        return True

    def abort(self) -> None:
        """Be gone."""


async def test_ids_come_from_the_generator() -> None:
    """Ours: it is passed in."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET",
        "path": "/", "raw_path": b"/", "headers": [], "state": {CONNECTION_KEY: Idle()},
    }  # fmt: skip

    await Guard(hello, new_request_id=lambda: RequestId("req_7"))(scope, receive, send)

    assert (b"x-request-id", b"req_7") in sent[0]["headers"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_anthropic_callers_get_their_own_header_too(path: str) -> None:
    """Anthropic API reference: `request-id`."""
    async with serving(show_id) as server:
        answer = await server.ask(get(path, "x-request-id: abc"))

    assert (answer.headers["request-id"], answer.headers["x-request-id"]) == ("abc", "abc")
    assert answer.body == b"abc"


async def test_other_callers_do_not() -> None:
    """Ours: it would be noise."""
    async with serving(show_id) as server:
        assert "request-id" not in (await server.ask(get("/v1/models"))).headers


@pytest.mark.parametrize("value", [b"a", b"A-b_c.d:1", b"x" * 128, b"0f8fad5b-d9cb-469f"])
def test_sane_ids_are_taken(value: bytes) -> None:
    """Ours: letters, digits and four marks, 128 of them."""
    assert accepted_request_id(value) == value.decode()


@pytest.mark.parametrize(
    "value", [None, b"", b"x" * 129, b"-a", b"a b", b"a\tb", b'a"b', b"\xc3\xa4", b"a\n", b"a/b"]
)
def test_other_ids_are_not(value: bytes | None) -> None:
    """Ours: they end up in log lines and headers."""
    assert accepted_request_id(value) is None


def test_made_ids_differ() -> None:
    """Ours: 96 random bits."""
    ids = {random_request_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(accepted_request_id(made.encode()) == made for made in ids)
