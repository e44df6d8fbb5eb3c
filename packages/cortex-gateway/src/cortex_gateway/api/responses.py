"""The Responses dialect: responses, whole, as streams, kept, and made in the background.

Source: OpenAI API reference, "Responses" (read November 2026).
"""

import asyncio
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import (
    ConflictError,
    DrainingError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PreviousResponseNotFoundError,
    RequestError,
    UpstreamRefusalError,
)
from cortex_core.translate.responses_writer import begun_response
from cortex_core.translate.target import PdfReader
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER, ResponsesRequest
from cortex_gateway.api.background import Background, Run
from cortex_gateway.api.counting import CountAsked
from cortex_gateway.api.kept_items import input_items, page_of, resolved
from cortex_gateway.api.responses_asked import ResponsesAsked
from cortex_gateway.proxy.aside import LARGE_BYTES
from cortex_gateway.proxy.asked import EVENT_STREAM, Head, ReadAsked
from cortex_gateway.proxy.call import read_body
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.records.schema import CONVERSATION, RESPONSE, KeptItem, Record
from cortex_gateway.records.store import RecordStore

PATH = "/v1/responses"

_RUNNING = ("queued", "in_progress")

_CANCEL_S = 5.0
"""How long a response may take to stop."""

_KEPT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ErrorTold(msgspec.Struct, frozen=True, kw_only=True):
    """What a plain error answer of the proxy says."""

    message: str
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """A plain error answer of the proxy."""

    error: ErrorTold


class ResponsesApi:
    """The routes of the dialect.

    Args:
        proxy: serves the requests.
        store: where responses are kept; `None` keeps none.
        background: runs those that nobody waits for.
        new_id: returns hexadecimal digits that are nobody else's.
        epoch_s: the wall clock.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.
    """

    def __init__(
        self,
        proxy: Proxy,
        store: RecordStore | None,
        background: Background,
        *,
        new_id: Callable[[], str],
        epoch_s: Callable[[], float],
        read_pdf: PdfReader | None,
    ) -> None:
        self._proxy = proxy
        self._store = store
        self._background = background
        self._new_id = new_id
        self._epoch_s = epoch_s
        self._read_pdf = read_pdf

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(PATH, endpoint=_Create(self), methods=["POST"]),
            Route(
                f"{PATH}/input_tokens",
                endpoint=self._proxy.endpoint(self._read_count),
                methods=["POST"],
            ),
            Route(f"{PATH}/{{id}}", self._retrieve, methods=["GET"]),
            Route(f"{PATH}/{{id}}", self._delete, methods=["DELETE"]),
            Route(f"{PATH}/{{id}}/cancel", self._cancel, methods=["POST"]),
            Route(f"{PATH}/{{id}}/input_items", self._input_items, methods=["GET"]),
        ]

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request for a response."""
        body = await read_body(scope, receive)
        read: ReadAsked = self._read
        # Most requests have no such word; in a large one it takes longer to look for it than to
        # decode it.
        if len(body) >= LARGE_BYTES or b'"background"' in body:
            request = await self._decoded_early(body)
            if request is not None and request.background:
                answer = await self._start(request, scope, body)
                await answer(scope, receive, send)
                return
            if request is not None:
                read = self._reader_of(request)
        await self._proxy.serve(scope, _given(body), send, read)

    async def _decoded_early(self, body: bytes) -> ResponsesRequest | None:
        """Return a request; `None` for what is to be refused where requests are counted."""
        try:
            return await self._proxy.aside(
                len(body), decode_request, body, RESPONSES_REQUEST_DECODER
            )
        except RequestError:
            return None

    def _reader_of(self, request: ResponsesRequest) -> ReadAsked:
        async def read(head: Head, body: bytes) -> ResponsesAsked:
            return await self._asked(request, len(body))

        return read

    async def _read(self, head: Head, body: bytes) -> ResponsesAsked:
        if len(body) < LARGE_BYTES:
            request = decode_request(body, RESPONSES_REQUEST_DECODER)
        else:
            request = await self._proxy.aside(
                len(body), decode_request, body, RESPONSES_REQUEST_DECODER
            )
        return await self._asked(request, len(body))

    async def _read_count(self, head: Head, body: bytes) -> CountAsked:
        request = await self._proxy.aside(
            len(body), decode_request, body, RESPONSES_REQUEST_DECODER
        )
        request = msgspec.structs.replace(request, store=False, background=None)
        asked = await self._asked(request, len(body))
        return CountAsked(asked, _render_count)

    async def _asked(self, request: ResponsesRequest, body_bytes: int) -> ResponsesAsked:
        """Find what a request refers to.

        Args:
            request: that was read.
            body_bytes: its size.

        Raises:
            InvalidRequestError: it refers to what is not there, or to too much.
            NotFoundError: there is no such conversation.
        """
        store = None if request.store is False else self._store
        salt = self._new_id()
        conversation_id = _conversation_id(request)
        history = await self._history(request, conversation_id)
        given = await self._proxy.aside(body_bytes, input_items, request.input, salt)
        own = await resolved(given, self._store)
        begun = begun_response(
            request,
            response_id=f"resp_{salt}",
            created_at=self._epoch_s(),
            is_stored=store is not None,
            conversation_id=conversation_id,
            status="queued" if request.background else "in_progress",
        )
        asked = await self._proxy.aside(
            body_bytes,
            ResponsesAsked,
            request,
            begun,
            own,
            history,
            store=store,
            now=self._epoch_s,
            read_pdf=self._read_pdf,
        )
        if asked.has_pdf:
            await asked.read_pdfs(self._proxy.aside.documents)
        return asked

    async def _history(
        self, request: ResponsesRequest, conversation_id: str | None
    ) -> list[KeptItem]:
        previous = request.previous_response_id
        if previous is not None and conversation_id is not None:
            raise InvalidRequestError(
                "give previous_response_id or conversation, not both", param="conversation"
            )
        if conversation_id is not None:
            if self._store is None or not await self._store.get(conversation_id, CONVERSATION):
                raise NotFoundError(f"there is no conversation {conversation_id[:200]!r}")
            return await self._store.items(conversation_id)
        if previous is None:
            return []
        found = None if self._store is None else await self._store.history(previous)
        if found is None:
            raise PreviousResponseNotFoundError(previous)
        return found

    async def _start(self, request: ResponsesRequest, scope: Scope, body: bytes) -> HttpResponse:
        """Begin to make a response in the background."""
        if self._store is None or request.store is False:
            raise InvalidRequestError(
                "background needs a response that is kept (store)", param="background"
            )
        asked = await self._asked(request, len(body))
        await asked.keep(asked.response)

        async def read(head: Head, again: bytes) -> ResponsesAsked:
            return asked

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await self._proxy.serve(scope, receive, send, read)

        try:
            run = self._background.start(asked, serve, scope, body, _settled)
        except OverloadedError:
            # Nobody is told of it, so that nobody would ever delete it.
            await self._store.delete(asked.response.id, RESPONSE)
            raise
        if request.stream:
            return StreamingResponse(run.events(-1), media_type=EVENT_STREAM)
        return _json(asked.response)

    async def _retrieve(self, request: Request) -> HttpResponse:
        response_id = request.path_params["id"]
        run = self._background.find(response_id)
        if request.query_params.get("stream") == "true":
            after = _starting_after(request.query_params.get("starting_after"))
            if run is None or not run.growing.is_stream:
                raise InvalidRequestError(
                    "only what a background response streams can be read again, for a while",
                    param="stream",
                )
            return StreamingResponse(run.events(after), media_type=EVENT_STREAM)
        if run is not None and not run.is_over:
            return _json(run.growing.response)
        return _raw((await self._record(response_id)).body)

    async def _delete(self, request: Request) -> HttpResponse:
        response_id = request.path_params["id"]
        run = self._background.find(response_id)
        if run is not None:
            await _stopped(run)
            self._background.drop(response_id)
        if self._store is None or not await self._store.delete(response_id, RESPONSE):
            raise _no_response(response_id)
        return _json({"id": response_id, "object": "response", "deleted": True})

    async def _cancel(self, request: Request) -> HttpResponse:
        response_id = request.path_params["id"]
        record = await self._record(response_id)
        if bytes(_KEPT.decode(record.body).get("background", msgspec.Raw())) != b"true":
            raise InvalidRequestError("only background responses can be cancelled")
        run = self._background.find(response_id)
        if run is not None:
            await _stopped(run)
            record = await self._record(response_id)
        return _raw(record.body)

    async def _input_items(self, request: Request) -> HttpResponse:
        response_id = request.path_params["id"]
        await self._record(response_id)
        assert self._store is not None
        items = [item for item in await self._store.items(response_id) if item.is_input]
        return _json(page_of(items, request.query_params))

    async def _record(self, response_id: str) -> Record:
        record = None if self._store is None else await self._store.get(response_id, RESPONSE)
        if record is None:
            raise _no_response(response_id)
        return record


class _Create:
    """Starlette mounts an object that is no function as an ASGI application."""

    def __init__(self, api: ResponsesApi) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api.create(scope, receive, send)


async def _settled(run: Run) -> bytes:
    """Keep how a run ended that did not come to its own end.

    Returns:
        The events that tell who reads along, when it was not told before.
    """
    asked = run.growing
    assert isinstance(asked, ResponsesAsked)
    if asked.is_settled:
        return b""
    last = b""
    if asked.response.status in _RUNNING:
        if run.is_cancelled:
            asked.end_as("cancelled")
        else:
            last = asked.failed(_failure_of(run))
    await asked.keep(asked.response)
    return last if asked.is_stream else b""


def _failure_of(run: Run) -> RequestError:
    """Return why a run did not come to its end."""
    if run.is_stopped:
        return DrainingError("the gateway went down meanwhile")
    try:
        error = msgspec.json.decode(bytes(run.body), type=ErrorBody).error
    except msgspec.DecodeError:
        return InternalError()
    return UpstreamRefusalError(
        error.message,
        status=500,
        openai_type="server_error",
        anthropic_type="api_error",
        code=error.code,
    )


def _starting_after(text: str | None) -> int:
    """Return the sequence number after which to read; -1 for all events.

    Raises:
        InvalidRequestError: it is no number.
    """
    if text is None:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InvalidRequestError("starting_after is a sequence number", param="starting_after")
    return int(text)


async def _stopped(run: Run) -> None:
    """Stop a run and wait for its end, within a bound.

    Raises:
        ConflictError: it takes longer; the caller may ask again.
    """
    run.cancel()
    try:
        async with asyncio.timeout(_CANCEL_S):
            await run.ended()
    except TimeoutError:
        raise ConflictError("the response is still being stopped; ask again") from None


def _conversation_id(request: ResponsesRequest) -> str | None:
    conversation = request.conversation
    return conversation if isinstance(conversation, str | None) else conversation.id


def _given(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _render_count(tokens: int) -> bytes:
    return encode_json({"object": "response.input_tokens", "input_tokens": tokens})


def _no_response(response_id: str) -> NotFoundError:
    return NotFoundError(f"there is no response {response_id[:200]!r}")


def _json(value: object) -> HttpResponse:
    return _raw(encode_json(value))


def _raw(body: bytes) -> HttpResponse:
    return HttpResponse(body, media_type="application/json")
