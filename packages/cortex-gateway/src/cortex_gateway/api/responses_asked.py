"""One request for a response, and what becomes of it."""

from collections.abc import Callable

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect
from cortex_core.errors import RequestError
from cortex_core.translate.capability import RESPONSES_FIELDS, refuse_unable
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.chat_request import chat_to_messages
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.parts import Reader, Translator
from cortex_core.translate.responses_request import responses_to_chat
from cortex_core.translate.responses_turns import has_pdf
from cortex_core.translate.responses_writer import ResponsesWriter
from cortex_core.translate.target import PdfReader, Target, ToChat
from cortex_core.wire.responses.answer import Response
from cortex_core.wire.responses.items import decode_items
from cortex_core.wire.responses.request import ResponsesRequest
from cortex_gateway.api.documents import RememberedPdfs
from cortex_gateway.api.openai import CHAT_PATH, MESSAGES_PATH, anew
from cortex_gateway.proxy.aside import Threads
from cortex_gateway.proxy.asked import EVENT_STREAM, Outbound
from cortex_gateway.records.schema import RESPONSE, KeptItem, Record
from cortex_gateway.records.store import RecordStore


class ResponsesAsked:
    """A request for a response.

    Args:
        request: as the caller wrote it.
        begun: the response before anything is generated.
        own: the request's own input.
        history: what was said before.
        store: where the response is kept; `None` when it is not.
        now: returns epoch seconds.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.

    Raises:
        InvalidRequestError: an item cannot be read.
    """

    stream_type = EVENT_STREAM

    def __init__(
        self,
        request: ResponsesRequest,
        begun: Response,
        own: list[KeptItem],
        history: list[KeptItem],
        *,
        store: RecordStore | None,
        now: Callable[[], float],
        read_pdf: PdfReader | None,
    ) -> None:
        self.model = request.model
        self.is_stream = bool(request.stream)
        self.is_settled = False
        """Whether the response is complete, and kept if it is to be."""
        self._request = request
        self._begun = begun
        self._own = own
        self._history = decode_items((item.body for item in history), "history")
        self._items = decode_items(item.body for item in own)
        # Found out here, which for a large request is beside the loop.
        self.has_pdf = read_pdf is not None and has_pdf((*self._history, *self._items))
        """Whether `read_pdfs` has something to do."""
        self._store = store
        self._now = now
        self._read_pdf = read_pdf
        self._writer = self._new_writer()
        self._translator: Translator | None = None

    @property
    def response(self) -> Response:
        """As far as it is known."""
        return self._writer.response

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Send a chat request, or what that comes to for an upstream of another dialect.

        Raises:
            RequestError: the request cannot be put to that model.
        """
        asked = self.translated(target, self._read_pdf)
        refuse_unable(asked.chat, target.capabilities, fields=RESPONSES_FIELDS)
        reader: Reader = ChatReader(limit=target.limit)
        if dialect is Dialect.ANTHROPIC:
            theirs = chat_to_messages(asked.chat, target)
            reader = MessagesReader()
            path, body = MESSAGES_PATH, encode_json(theirs.request)
            ignored = (*asked.ignored, *theirs.ignored)
        else:
            path, body, ignored = CHAT_PATH, encode_json(asked.chat), asked.ignored
        self._translator = anew(self._translator, reader, self._begin_writing)
        return Outbound(
            path=path, body=body, answer=self._translator, is_translated=True, ignored=ignored
        )

    def translated(self, target: Target, read_pdf: PdfReader | None) -> ToChat:
        """Return the chat request.

        Raises:
            RequestError: the request cannot be put to that model.
        """
        return responses_to_chat(
            self._request, self._items, target, history=self._history, read_pdf=read_pdf
        )

    async def read_pdfs(self, threads: Threads) -> None:
        """Read the PDFs of the input and of what was said before, off the loop.

        Raises:
            RequestError: one cannot be read, or too many are being read.
        """
        if self._read_pdf is not None:
            pages = self._read_pdf = RememberedPdfs(self._read_pdf)
            await pages.foresee(threads, self.translated, Target(model=self.model))

    def failed(self, error: RequestError) -> bytes:
        """Return `response.failed`."""
        return self._writer.fail(error)

    async def settle(self) -> None:
        """Keep the response, so that it can be gone on from once its end is read."""
        self.is_settled = True
        await self.keep(self.response)

    async def keep(self, response: Response) -> None:
        """Keep `response` as this request's, and what was said for its conversation."""
        if self._store is None:
            return
        said = [
            KeptItem(id=item.id, body=encode_json(item), is_input=False) for item in response.output
        ]
        record = Record(
            id=response.id,
            kind=RESPONSE,
            body=encode_json(response),
            previous=response.previous_response_id,
            created=response.created_at,
        )
        await self._store.put(record, (*self._own, *said))
        if response.conversation is not None and response.status in ("completed", "incomplete"):
            await self._store.add_items(response.conversation.id, (*self._own, *said))

    def end_as(self, status: str, **changes: object) -> Response:
        """Set how a response ended that did not come to its own end, and return it."""
        ended = msgspec.structs.replace(self.response, status=status, **changes)
        self._writer.response = ended
        return ended

    def _begin_writing(self) -> ResponsesWriter:
        self._writer = self._new_writer()
        return self._writer

    def _new_writer(self) -> ResponsesWriter:
        return ResponsesWriter(self._request, self._begun, self._now)
