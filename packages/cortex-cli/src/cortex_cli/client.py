"""Questions to a gateway over HTTP; the only module here that imports aiohttp."""

import os
import urllib.parse
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from cortex_cli.context import ConfigurationError, FleetError
from cortex_core.fleet.overview import FleetOverview
from cortex_core.routing.explain import Explanation
from cortex_core.wire.openai.models import ModelList

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
"""The gateway answers these questions from memory, so a longer silence means that it hangs."""

CONNECT_TIMEOUT_S = 3.0

MAX_ANSWER_BYTES = 64 << 20
"""Far more than the biggest fleet fills; a wrong address must not fill the memory."""


class GatewayClient:
    """Asks one gateway; an async context manager that owns its connections."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = _checked(endpoint)
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def overview(self) -> FleetOverview:
        """Return the fleet as the gateway sees it.

        Raises:
            FleetError: the gateway cannot be reached, or answers something else.
        """
        return await self._get("/admin/fleet", FleetOverview)

    async def models(self) -> ModelList:
        """Return the models that the gateway lists.

        Raises:
            FleetError: the gateway cannot be reached, or answers something else.
        """
        return await self._get("/v1/models", ModelList)

    async def explanation(self, model: str) -> Explanation:
        """Return what would become of a request for a model.

        Raises:
            FleetError: there is no such model, or the gateway cannot be reached, or answers
                something else.
        """
        return await self._ask("POST", "/admin/explain", Explanation, body={"model": model})

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._ask("GET", path, kind)

    async def _ask(self, method: str, path: str, kind: type[T], body: object | None = None) -> T:
        url = f"{self.endpoint}{path}"
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(
                method, url, data=data, allow_redirects=False
            ) as answer:
                status = answer.status
                told = bytearray()
                async for chunk in answer.content.iter_any():
                    told += chunk
                    if len(told) > MAX_ANSWER_BYTES:
                        raise FleetError(f"{url}: the answer is too large to be a gateway's")
        except TimeoutError:
            raise FleetError(f"{url}: no answer within {ANSWER_TIMEOUT_S:g} s") from None
        except aiohttp.ClientError as error:
            raise FleetError(f"{url}: {_reason(error)}") from None
        refusal = _message_of(told) if 400 <= status < 500 else None
        if refusal is not None:
            raise FleetError(refusal)
        if status != 200:
            raise FleetError(f"{url}: answered {status}; is this the address of a cortex gateway?")
        try:
            return msgspec.json.decode(told, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise FleetError(
                f"{url}: the answer cannot be read; is this the address of a cortex gateway?"
            ) from None


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    code: str


class _ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: _Error


def _message_of(body: bytes | bytearray) -> str | None:
    """Return what a gateway has against a question; `None` when a gateway did not say it."""
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _checked(endpoint: str) -> str:
    """Return the endpoint without a trailing slash.

    Raises:
        ConfigurationError: it is no HTTP URL.
    """
    try:
        parts = urllib.parse.urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigurationError(
            f"{endpoint!r} is no endpoint; use a URL such as http://127.0.0.1:31313"
        )
    return endpoint.rstrip("/")


def _reason(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        # asyncio puts its own words where the system's belong; names that do not resolve have
        # numbers of their own, below zero.
        cause = error.os_error
        number = cause.errno or 0
        return f"cannot be reached: {os.strerror(number) if number > 0 else cause.strerror}".lower()
    return str(error) or type(error).__name__
