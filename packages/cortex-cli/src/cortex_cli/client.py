"""Questions to a gateway over HTTP; the only module here that imports aiohttp."""

import os
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from cortex_cli.context import ConfigurationError, FleetError
from cortex_core.fleet.overview import FleetOverview
from cortex_core.routing.explain import Explanation
from cortex_core.routing.record import DecisionsAnswer
from cortex_core.sse import SseDecoder, SseEvent
from cortex_core.wire.admin import (
    DONE_EVENT,
    ERROR_EVENT,
    Action,
    CordonAnswer,
    DrainAnswer,
    LoadNews,
    ModelAnswer,
    ModelCommand,
    NodeCommand,
    ReloadAnswer,
)
from cortex_core.wire.fit import FitCommand, FleetFit
from cortex_core.wire.openai.models import ModelList
from cortex_core.wire.weights import PullCommand, WeightsList, WeightsNews

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
"""The gateway answers these questions from memory, so a longer silence means that it hangs."""

CONNECT_TIMEOUT_S = 3.0

SILENCE_S = 30.0
"""A gateway tells how far a load is at least every 5 s."""

FROM_MEMORY = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)

NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
"""For commands that are answered when they are done: a model may take minutes to leave."""

STREAM = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)

MAX_ANSWER_BYTES = 64 << 20
"""Far more than the biggest fleet fills; a wrong address must not fill the memory."""


class GatewayClient:
    """Asks one gateway; an async context manager that owns its connections."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = _checked(endpoint)
        self._session = aiohttp.ClientSession()

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

    async def decisions(self, query: Mapping[str, str]) -> DecisionsAnswer:
        """Return the latest decisions.

        Args:
            query: `request`, `model` and `limit`, as far as they are meant.

        Raises:
            FleetError: the gateway cannot be reached, or answers something else.
        """
        return await self._get(f"/admin/decisions?{urllib.parse.urlencode(query)}", DecisionsAnswer)

    async def perform(self, action: Action, model: str, command: ModelCommand) -> ModelAnswer:
        """Have something done to a model, and return when it is done.

        Raises:
            FleetError: it was refused, or the gateway cannot be asked.
        """
        return await self._ask("POST", _model_path(action, model), ModelAnswer, command, NO_LIMIT)

    async def fit(self, model: str, command: FitCommand) -> FleetFit:
        """Return what nodes say of a load; nothing is done.

        Raises:
            FleetError: the gateway cannot be asked.
        """
        return await self._ask("POST", _model_path("fit", model), FleetFit, command, NO_LIMIT)

    async def load(
        self, model: str, command: ModelCommand
    ) -> AsyncIterator[LoadNews | ModelAnswer]:
        """Have a model loaded, and yield how far it is; the last item is the answer.

        Raises:
            FleetError: it is not loaded, or the gateway cannot be asked.
        """
        path = _model_path(Action.LOAD, model)
        async for event in self._events(path, command):
            if event.event == DONE_EVENT:
                yield _decoded(path, event.data, ModelAnswer)
                return
            yield _decoded(path, event.data, LoadNews)

    async def weights(self, node: str) -> WeightsList:
        """Return what is on a node's disk.

        Raises:
            FleetError: it was refused, or the gateway cannot be asked.
        """
        return await self._ask("GET", _node_path("weights", node), WeightsList, None, NO_LIMIT)

    async def pull(self, node: str, command: PullCommand) -> AsyncIterator[WeightsNews]:
        """Have a model downloaded, and yield how far it is; the last item says that it is there.

        Raises:
            FleetError: it is not downloaded, or the gateway cannot be asked.
        """
        path = _node_path("weights/pull", node)
        if not command.wait:
            yield await self._ask("POST", path, WeightsNews, command, NO_LIMIT)
            return
        async for event in self._events(path, command):
            yield _decoded(path, event.data, WeightsNews)
            if event.event == DONE_EVENT:
                return

    async def remove(self, node: str, model: str) -> WeightsNews:
        """Have a model removed from a node's disk, and return when it is gone.

        Raises:
            FleetError: it was refused, or the gateway cannot be asked.
        """
        path = _node_path(f"weights/{urllib.parse.quote(model, safe='/:@')}", node)
        return await self._ask("DELETE", path, WeightsNews, None, NO_LIMIT)

    async def _events(self, path: str, command: object) -> AsyncIterator[SseEvent]:
        """Yield the events of something that takes long.

        Raises:
            FleetError: it fails, or its events end without a last one.
        """
        url = f"{self.endpoint}{path}"
        headers = {"Accept": "text/event-stream"}
        decoder = SseDecoder()
        with _as_fleet_errors(url):
            async with self._session.post(
                url, data=_encoded(command), headers=headers, timeout=STREAM, allow_redirects=False
            ) as answer:
                if answer.status != 200 or answer.content_type != "text/event-stream":
                    raise _refusal(url, answer.status, await answer.read())
                async for chunk in answer.content.iter_any():
                    for event in decoder.feed(chunk):
                        if event.event == ERROR_EVENT:
                            message = _message_of(event.data.encode())
                            raise FleetError(message or f"{url}: it failed")
                        yield event
        raise FleetError(f"{url}: the answer ended before what it tells of did")

    async def cordon(self, node: str, *, is_cordoned: bool, dry_run: bool) -> CordonAnswer:
        """Have a node take no new models, or take them again.

        Raises:
            FleetError: it was refused, or the gateway cannot be asked.
        """
        path = _node_path("cordon" if is_cordoned else "uncordon", node)
        command = NodeCommand(dry_run=dry_run)
        return await self._ask("POST", path, CordonAnswer, command, NO_LIMIT)

    async def drain(self, node: str, *, dry_run: bool) -> DrainAnswer:
        """Have a node emptied, and return when it is.

        Raises:
            FleetError: it was refused, or the gateway cannot be asked.
        """
        command = NodeCommand(dry_run=dry_run)
        return await self._ask("POST", _node_path("drain", node), DrainAnswer, command, NO_LIMIT)

    async def reload(self) -> ReloadAnswer:
        """Have the gateway read its files anew.

        Raises:
            ConfigurationError: they cannot be used.
            FleetError: the gateway cannot be asked.
        """
        try:
            return await self._ask("POST", "/admin/config/reload", ReloadAnswer)
        except RefusedError as error:
            if error.status == 400:
                raise ConfigurationError(error.message) from None
            raise

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._ask("GET", path, kind)

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: object | None = None,
        limit: aiohttp.ClientTimeout = FROM_MEMORY,
    ) -> T:
        url = f"{self.endpoint}{path}"
        data = None if body is None else _encoded(body)
        told = bytearray()
        with _as_fleet_errors(url):
            async with self._session.request(
                method, url, data=data, timeout=limit, allow_redirects=False
            ) as answer:
                status = answer.status
                async for chunk in answer.content.iter_any():
                    told += chunk
                    if len(told) > MAX_ANSWER_BYTES:
                        raise FleetError(f"{url}: the answer is too large to be a gateway's")
        if status not in (200, 202):
            raise _refusal(url, status, told)
        return _decoded(url, told, kind)


class RefusedError(FleetError):
    """A gateway's own refusal; its words are the message."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str = ""


class _ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: _Error


@contextmanager
def _as_fleet_errors(url: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise FleetError(f"{url}: no answer within {ANSWER_TIMEOUT_S:g} s") from None
    except aiohttp.ClientError as error:
        raise FleetError(f"{url}: {_reason(error)}") from None


def _refusal(url: str, status: int, body: bytes | bytearray) -> FleetError:
    message = _message_of(body) if status >= 400 else None
    if message is not None:
        return RefusedError(message, status)
    return FleetError(f"{url}: answered {status}; is this the address of a cortex gateway?")


def _decoded(url: str, body: bytes | bytearray | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FleetError(
            f"{url}: the answer cannot be read; is this the address of a cortex gateway?"
        ) from None


def _encoded(command: object) -> bytes:
    return msgspec.json.encode(command)


def _model_path(action: str, model: str) -> str:
    return f"/admin/models/{urllib.parse.quote(model, safe='/:@')}/{action}"


def _node_path(action: str, node: str) -> str:
    return f"/admin/nodes/{urllib.parse.quote(node, safe='')}/{action}"


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
