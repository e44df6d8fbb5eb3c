"""Heads that two programs may read differently, or that are too large, get nowhere."""

import asyncio
import socket
import time

import pytest
from starlette.types import Receive, Scope, Send

from cortex_core.server.checks import read_head
from cortex_core.server.limits import Limits
from tests.server.apps import hello
from tests.server.harness import at_rest, eventually, get, in_use, request, serving

SMUGGLED = get("/smuggled")


class Recording:
    """An app that remembers which paths it was asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
            await hello(scope, receive, send)


def posted(*headers: str, version: str = "1.1", body: bytes = b"0\r\n\r\n") -> bytes:
    return request("POST", "/first", *headers, version=version) + body


SMUGGLING = {
    "cl+te": posted("content-length: 5", "transfer-encoding: chunked"),
    "te+cl": posted("transfer-encoding: chunked", "content-length: 5"),
    "cl+te, short": posted("content-length: 3", "transfer-encoding: chunked"),
    "te on 1.0": posted("transfer-encoding: chunked", "connection: keep-alive", version="1.0"),
    "two lengths": posted("content-length: 5", "content-length: 6", body=b"abcde"),
    "list of lengths": posted("content-length: 5, 6", body=b"abcde"),
    "signed length": posted("content-length: +5", body=b"abcde"),
    "long length": posted("content-length: " + "0" * 18 + "5", body=b"abcde"),
    "unknown coding": posted("transfer-encoding: xchunked"),
    "two codings": posted("transfer-encoding: gzip, chunked"),
    "coding twice": posted("transfer-encoding: chunked", "transfer-encoding: chunked"),
    "underscored length": posted("Content_Length: 5", "content-length: 5", body=b"abcde"),
    "underscored coding": posted("Transfer_Encoding: chunked", "content-length: 5"),
    "space before colon": posted("content-length : 5", body=b"abcde"),
    "control character": posted("content-length: 5", "x: a\x01b", body=b"abcde"),
    "version": posted("content-length: 5", body=b"abcde", version="9.9"),
}


@pytest.mark.parametrize("attack", SMUGGLING.values(), ids=SMUGGLING)
async def test_smuggled_request_does_not_run(attack: bytes) -> None:
    """RFC 9112, sections 6.1, 6.3 and 11.2: refuse, and close."""
    app = Recording()
    async with serving(app, limits=Limits(discard_s=0.1)) as server:
        client = await server.connect()

        await client.send(attack + SMUGGLED)

        answer = await client.answer()
        assert answer.status in (400, 501)
        assert answer.headers["connection"] == "close"
        await client.rest()
        assert app.paths == []
        client.close()


REFUSED = {
    "connect": (request("CONNECT", "/"), 400),
    "connect authority": (request("CONNECT", "example.org:443"), 400),
    "trace": (request("TRACE", "/"), 400),
    "absolute form": (get("http://example.org/"), 400),
    "asterisk": (request("OPTIONS", "*"), 400),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "many headers": (get("/", *[f"x-{n}: 1" for n in range(101)]), 431),
    "large header": (get("/", "x: " + "a" * 33_000), 431),
}


@pytest.mark.parametrize(("message", "status"), REFUSED.values(), ids=REFUSED)
async def test_request_is_refused_and_the_connection_closed(message: bytes, status: int) -> None:
    """Ours, for everything that no caller of ours sends."""
    app = Recording()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(message)

        answer = await client.answer()

        assert (answer.status, answer.headers["connection"]) == (status, "close")
        await client.rest()
        assert app.paths == []
        client.close()


async def test_upgrade_to_http2_is_not_taken() -> None:
    """Hypercorn has no switch for it; RFC 9110, section 7.8, lets a server ignore the wish."""
    async with serving(hello) as server:
        headers = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAA")

        answer = await server.ask(get("/", *headers))

        assert (answer.status, answer.body) == (200, b"hi")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_websocket_is_refused_in_plain_http(path: str) -> None:
    """Codex falls back to HTTP at once on 426."""
    headers = (
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    async with serving(hello) as server:
        before = await at_rest()

        answer = await server.ask(get(path, *headers))

        assert answer.status == 426
        assert b"WebSocket" in answer.body
        await eventually(lambda: in_use() == before)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:31313", 200),
        ("[::1]:31313", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
    ],
)
async def test_only_allowed_hosts_are_served(host: str, status: int) -> None:
    """Ours: a page that rebinds its name to 127.0.0.1 still sends its own `Host`."""
    limits = Limits(allowed_hosts=frozenset(("localhost", "[::1]")))
    async with serving(hello, limits=limits) as server:
        message = f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()

        assert (await server.ask(message)).status == status


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "], ids=["no", "half"]
)
async def test_slow_heads_are_not_waited_for(sent: bytes) -> None:
    """Ours: a connection has as long for its first head as it may be idle."""
    async with serving(hello, keep_alive_s=0.2) as server:
        before = await at_rest()
        client = await server.connect()
        await client.send(sent)

        assert await client.rest() == b""
        client.close()
        await eventually(lambda: in_use() == before)


class Stall(asyncio.Protocol):
    """Sends something over a socket, and has the loop stand still before that can be read."""

    def __init__(self, caller: socket.socket, data: bytes) -> None:
        self._caller = caller
        self._data = data

    def data_received(self, data: bytes) -> None:
        self._caller.send(self._data)
        time.sleep(1.3)


async def test_request_that_came_while_the_loop_stood_still_is_served() -> None:
    """Ours: the time of an idle connection is up, but it is not idle any more."""
    asked = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    async with serving(hello, keep_alive_s=1) as server:
        with far, socket.create_connection(("127.0.0.1", server.port), timeout=5) as caller:
            caller.setblocking(False)
            caller.send(asked)
            seen = await loop.sock_recv(caller, 65536)
            transport, _ = await loop.create_connection(lambda: Stall(caller, asked), sock=near)
            far.send(b"x")
            again = await loop.sock_recv(caller, 65536)
            transport.close()

    assert again[:15] == seen[:15] == b"HTTP/1.1 200 \r\n"


def scope_of(*headers: tuple[bytes, bytes]) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "headers": list(headers),
    }


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"transfer-encoding", b"xchunked")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_framing_is_refused_whatever_the_parser_does(headers: list[tuple[bytes, bytes]]) -> None:
    """Ours: h11 refuses these first, another server might not."""
    head = read_head(scope_of(*headers), Limits())

    assert head.error is not None
    assert head.error.status == 400


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"content-length", b"0")], 0),
        ([(b"content-length", b"7")], 7),
        ([(b"transfer-encoding", b"chunked")], None),
    ],
)
def test_length_of_the_body_is_known(
    headers: list[tuple[bytes, bytes]], length: int | None
) -> None:
    """RFC 9112, section 6.3."""
    head = read_head(scope_of(*headers), Limits())

    assert (head.error, head.body_bytes) == (None, length)
