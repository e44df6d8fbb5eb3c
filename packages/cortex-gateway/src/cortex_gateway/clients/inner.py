"""The way from a worker to the control process, for whatever it does not serve itself."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import UpstreamError
from cortex_core.headers import HOP_BY_HOP
from cortex_core.server.exchange import ClientGoneError, exchange_of

PEER = b"x-cortex-peer"
"""Header between the two: the address of the caller, which nobody else may say."""

TOKEN = b"x-cortex-inner"
"""Header between the two, by which the control process knows its workers."""

_REQUEST_ID = b"x-request-id"

_ASKED_OFF = frozenset(
    (*(name.encode() for name in HOP_BY_HOP), b"expect", _REQUEST_ID, PEER, TOKEN)
)

_ANSWERED_OFF = frozenset(
    (*(name.encode() for name in HOP_BY_HOP), b"date", b"server", _REQUEST_ID, b"request-id")
)
"""What the worker's own server writes."""


class Inner:
    """Passes requests on to the control process, and its answers back as they come.

    Args:
        session: connects to the socket of the control process, whatever the URL.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            UpstreamError: the control process is not there.
        """
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + ("?" + query if query else "")
        headers = _asked(scope)
        names = {name for name, _ in headers}
        has_body = "content-length" in names or _is_chunked(scope)
        try:
            async with self._session.request(
                scope["method"],
                yarl.URL("http://control" + target, encoded=True),
                headers=headers,
                data=_body(receive) if has_body else None,
                allow_redirects=False,
            ) as answer:
                await _pass(answer, send)
        except ClientGoneError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError("the control process does not answer") from error


class _Connector(aiohttp.BaseConnector):
    """Connects to a socket in the abstract namespace, which libuv alone cannot.

    Args:
        name: of the socket.
    """

    def __init__(self, name: str) -> None:
        super().__init__(limit=0)
        self._name = name

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            # Done at once, or refused because too many wait.
            sock.connect(self._name)
            _, handler = await loop.create_unix_connection(lambda: ResponseHandler(loop), sock=sock)
        except OSError as error:
            sock.close()
            raise aiohttp.ClientConnectionError(str(error)) from error
        return handler


@asynccontextmanager
async def open_inner(name: str, token: str) -> AsyncIterator[Inner]:
    """Open the way to the control process, which listens under `name` and knows `token`."""
    session = aiohttp.ClientSession(
        connector=_Connector(name),
        headers={TOKEN.decode(): token},
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        trust_env=False,
    )
    async with session:
        yield Inner(session)


def behind_workers(app: ASGIApp, token: str) -> ASGIApp:
    """Return `app` for requests that workers pass on: their callers are those of the workers.

    Args:
        app: serves them.
        token: known to the workers alone; without it nothing is served.
    """

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            told = [value for name, value in scope["headers"] if name == TOKEN]
            if not secrets.compare_digest(b"".join(told), token.encode()):
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            peers = [value for name, value in scope["headers"] if name == PEER]
            scope["client"] = (peers[0].decode("latin-1"), 0) if peers else None
        await app(scope, receive, send)

    return inner


def _asked(scope: Scope) -> list[tuple[str, str]]:
    kept = [pair for pair in scope["headers"] if pair[0] not in _ASKED_OFF]
    kept.append((_REQUEST_ID, exchange_of(scope).request_id.encode()))
    if scope.get("client"):
        kept.append((PEER, scope["client"][0].encode("latin-1")))
    return [(name.decode("latin-1"), value.decode(errors="replace")) for name, value in kept]


def _is_chunked(scope: Scope) -> bool:
    return any(name == b"transfer-encoding" for name, _ in scope["headers"])


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


async def _pass(answer: aiohttp.ClientResponse, send: Send) -> None:
    headers = [
        (name.lower(), value)
        for name, value in answer.raw_headers
        if name.lower() not in _ANSWERED_OFF
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for chunk in answer.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
