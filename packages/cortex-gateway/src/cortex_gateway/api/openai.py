"""The OpenAI dialect: chat and whatever else engines serve under its paths.

A body goes on as the caller wrote it, but for a name that the engine does not know and for the
few things that engines do not take.
"""

from collections.abc import Callable

import msgspec
from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import InvalidRequestError, RequestError
from cortex_core.translate.capability import refuse_other_kind, refuse_unable
from cortex_core.translate.chat_normal import normalise, within
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.chat_request import chat_to_messages
from cortex_core.translate.chat_writer import ChatWriter
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.parts import Reader, Translator, Writer
from cortex_core.translate.target import Target
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER, Envelope
from cortex_gateway.api.passage import ChatPassage, Passage
from cortex_gateway.api.unasked import UsageHider, with_usage_asked
from cortex_gateway.ports import Body
from cortex_gateway.proxy.aside import LARGE_BYTES
from cortex_gateway.proxy.asked import EVENT_STREAM, Answering, Head, Outbound
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.proxy.rewrite import with_model

CHAT_PATH = "/v1/chat/completions"

COMPLETIONS_PATH = "/v1/completions"

ENGINE_PATHS = (
    COMPLETIONS_PATH,
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
)
"""Paths whose requests and answers pass as they are; all but the first two are vLLM's own."""

MESSAGES_PATH = "/v1/messages"


def routes(proxy: Proxy, epoch_s: Callable[[], float]) -> list[Route]:
    """Return the routes of the dialect.

    Args:
        proxy: serves the requests.
        epoch_s: the wall clock, for answers that are written here.
    """

    async def read_chat(head: Head, body: bytes) -> ChatAsked:
        created = int(epoch_s())
        if len(body) < LARGE_BYTES:
            return ChatAsked(head, body, created=created)
        # Several passes over the body: the loop gets a turn between them.
        return await proxy.aside(len(body), ChatAsked, head, body, created=created)

    async def read_other(head: Head, body: bytes) -> EngineAsked:
        if len(body) < LARGE_BYTES:
            return EngineAsked(head, body)
        return await proxy.aside(len(body), EngineAsked, head, body)

    # An object that is no function is mounted as an ASGI app; nothing is read on its behalf.
    return [
        Route(CHAT_PATH, endpoint=proxy.endpoint(read_chat), methods=["POST"]),
        *(
            Route(path, endpoint=proxy.endpoint(read_other), methods=["POST"])
            for path in ENGINE_PATHS
        ),
    ]


class EngineAsked:
    """A request that only an engine of the OpenAI dialect can answer.

    Raises:
        RequestError: the body cannot be used.
    """

    stream_type = EVENT_STREAM

    def __init__(self, head: Head, body: bytes) -> None:
        envelope = decode_request(body, ENVELOPE_DECODER)
        self.model = envelope.model
        self.is_stream = bool(envelope.stream)
        self._envelope = envelope
        self._counts = head.path == COMPLETIONS_PATH and is_to_be_counted(envelope)
        """Whether it is a stream whose tokens are counted although the caller does not ask."""
        self._head = head
        self._body = body

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Send the caller's bytes.

        Raises:
            InvalidRequestError: the upstream has nothing of the kind, or the model is of another.
        """
        if dialect is not Dialect.OPENAI:
            raise InvalidRequestError(
                f"{self.model!r} is served by an upstream that only chats; use {CHAT_PATH}",
                param="model",
            )
        refuse_other_kind(self._head.path, target.capabilities)
        path, body = self._head.path, renamed(self._body, self.model, target.model)
        if self._counts and target.tells_usage:
            answer = Passage(self._head.request_id, UsageHider())
            return Outbound(path=path, body=counted(body, self._envelope), answer=answer)
        return Outbound(path=path, body=body)

    def failed(self, error: RequestError) -> bytes:
        """Return the error event that ends the stream."""
        return error_event(error, Dialect.OPENAI, self._head.request_id)

    async def settle(self) -> None:
        """Nothing is kept."""


class ChatAsked:
    """A chat completion request.

    Raises:
        RequestError: the body cannot be used.
    """

    stream_type = EVENT_STREAM

    def __init__(self, head: Head, body: bytes, *, created: int) -> None:
        self._head = head
        self._created = created
        self._normal = normalise(body)
        self._envelope: Envelope = self._normal.envelope
        self.model = self._envelope.model
        self.is_stream = bool(self._envelope.stream)
        self._answer: Translator | None = None

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Send the caller's bytes, or what they come to for an upstream of another dialect.

        Raises:
            RequestError: the model cannot do what is asked.
        """
        refuse_unable(self._normal.asks, target.capabilities)
        if dialect is Dialect.ANTHROPIC:
            return self._to_messages(target)
        body = renamed(within(self._normal, target.limit), self.model, target.model)
        hider = None
        if target.tells_usage and is_to_be_counted(self._envelope):
            body, hider = counted(body, self._envelope), UsageHider()
        answer: Answering = ChatPassage(self._head.request_id, hider, self.model, self._created)
        if self._normal.legacy_functions:
            answer = self._translator(ChatReader(limit=target.limit))
        return Outbound(path=CHAT_PATH, body=body, answer=answer)

    def failed(self, error: RequestError) -> bytes:
        """Return the error event that ends the stream."""
        return error_event(error, Dialect.OPENAI, self._head.request_id)

    async def settle(self) -> None:
        """Nothing is kept."""

    def _to_messages(self, target: Target) -> Outbound:
        asked = chat_to_messages(decode_request(self._normal.body, CHAT_REQUEST_DECODER), target)
        return Outbound(
            path=MESSAGES_PATH,
            body=encode_json(asked.request),
            answer=self._translator(MessagesReader()),
            is_translated=True,
            ignored=asked.ignored,
        )

    def _translator(self, reader: Reader) -> Translator:
        self._answer = anew(self._answer, reader, self._writer)
        return self._answer

    def _writer(self) -> ChatWriter:
        options = self._envelope.stream_options
        return ChatWriter(
            model=self.model,
            answer_id="chatcmpl-" + self._head.request_id.removeprefix("req_"),
            created=self._created,
            include_usage=bool(options and options.include_usage),
            legacy_functions=self._normal.legacy_functions,
        )


def is_to_be_counted(envelope: Envelope) -> bool:
    """Whether a request is for a stream and does not ask for its usage."""
    options = envelope.stream_options
    return bool(envelope.stream) and not (options and options.include_usage)


def anew(before: Translator | None, reader: Reader, writer: Callable[[], Writer]) -> Translator:
    """Return what reads an answer with `reader`, and goes on from what the caller was shown.

    Args:
        before: what was to read the answer of an earlier attempt.
        reader: of the next one.
        writer: makes the caller's side, where it was shown nothing.
    """
    if before is None or not before.has_thought:
        return Translator(reader, writer())
    before.read_with(reader)
    return before


def counted(body: Body, envelope: Envelope) -> Body:
    """Return a body that `is_to_be_counted` so that it asks for its usage."""
    return with_usage_asked(body, has_options=envelope.stream_options is not msgspec.UNSET)


def renamed(body: bytes, requested: str, model: str) -> Body:
    """Return `body` with the name that the upstream knows; the same bytes when it is the same."""
    return body if model == requested else with_model(body, model)
