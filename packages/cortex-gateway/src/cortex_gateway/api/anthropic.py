"""The Anthropic dialect: messages and the counting of their tokens.

The model lists of this dialect are in `models`, which serves both.
"""

from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import InvalidRequestError, RequestError
from cortex_core.translate.capability import MESSAGES_FIELDS, refuse_unable
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.documents import has_pdf
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.messages_writer import MessagesWriter, messages_writer_for
from cortex_core.translate.parts import Translator
from cortex_core.translate.target import PdfReader, Target
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER, MessagesRequest
from cortex_gateway.api.counting import CountAsked
from cortex_gateway.api.documents import RememberedPdfs
from cortex_gateway.api.openai import CHAT_PATH, MESSAGES_PATH, anew, renamed
from cortex_gateway.proxy.aside import LARGE_BYTES
from cortex_gateway.proxy.asked import EVENT_STREAM, Head, Outbound
from cortex_gateway.proxy.proxy import Proxy

_ONWARD = ("anthropic-version", "anthropic-beta")
"""Headers of the dialect that an upstream which speaks it gets to see."""


def routes(proxy: Proxy, read_pdf: PdfReader | None) -> list[Route]:
    """Return the routes of the dialect.

    Args:
        proxy: serves the requests.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.
    """

    async def read(head: Head, body: bytes) -> MessagesAsked:
        asked = await read_any(head, body)
        if asked.request.max_tokens is None:
            raise InvalidRequestError("max_tokens is required", param="max_tokens")
        return asked

    async def read_any(head: Head, body: bytes) -> MessagesAsked:
        if len(body) < LARGE_BYTES:
            request, needs_pages = look_at(body)
        else:
            request, needs_pages = await proxy.aside(len(body), look_at, body)
        if read_pdf is None or not needs_pages:
            return MessagesAsked(head, body, request, read_pdf)
        pages = RememberedPdfs(read_pdf)
        await pages.foresee(
            proxy.aside.documents, messages_to_chat, request, Target(model=request.model)
        )
        return MessagesAsked(head, body, request, pages)

    def look_at(body: bytes) -> tuple[MessagesRequest, bool]:
        request = decode_request(body, MESSAGES_REQUEST_DECODER)
        return request, read_pdf is not None and has_pdf(request)

    async def read_count(head: Head, body: bytes) -> CountAsked:
        return CountAsked(await read_any(head, body), _render_count)

    count_path = f"{MESSAGES_PATH}/count_tokens"
    return [
        Route(MESSAGES_PATH, endpoint=proxy.endpoint(read), methods=["POST"]),
        Route(count_path, endpoint=proxy.endpoint(read_count), methods=["POST"]),
    ]


class MessagesAsked:
    """A request for a message.

    Args:
        head: of the HTTP request.
        body: as the caller wrote it.
        request: `body`, decoded.
        read_pdf: see `routes`.
    """

    stream_type = EVENT_STREAM

    def __init__(
        self, head: Head, body: bytes, request: MessagesRequest, read_pdf: PdfReader | None
    ) -> None:
        self.model = request.model
        self.is_stream = bool(request.stream)
        self._head = head
        self._body = body
        self.request = request
        self._read_pdf = read_pdf
        self._answer: Translator | None = None

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Send a chat request, or the caller's own bytes to who speaks this dialect.

        Raises:
            RequestError: the request cannot be put to that model.
        """
        if dialect is Dialect.ANTHROPIC:
            headers = self._head.headers
            return Outbound(
                path=MESSAGES_PATH,
                body=renamed(self._body, self.model, target.model),
                headers=[(name, headers[name]) for name in _ONWARD if name in headers],
            )
        asked = messages_to_chat(self.request, target, read_pdf=self._read_pdf)
        refuse_unable(asked.chat, target.capabilities, fields=MESSAGES_FIELDS)
        self._answer = anew(self._answer, ChatReader(limit=target.limit), self._writer)
        return Outbound(
            path=CHAT_PATH,
            body=encode_json(asked.chat),
            answer=self._answer,
            is_translated=True,
            ignored=asked.ignored,
        )

    def failed(self, error: RequestError) -> bytes:
        """Return the error event that ends the stream."""
        if self._answer is not None:
            return self._answer.fail(error)
        return error_event(error, Dialect.ANTHROPIC, self._head.request_id)

    async def settle(self) -> None:
        """Nothing is kept."""

    def _writer(self) -> MessagesWriter:
        request_id = self._head.request_id
        return messages_writer_for(
            self.request,
            message_id="msg_" + request_id.removeprefix("req_"),
            request_id=request_id,
        )


def _render_count(tokens: int) -> bytes:
    return encode_json({"input_tokens": tokens})
