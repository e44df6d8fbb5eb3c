"""Writes answers in OpenAI's Responses dialect.

Source: OpenAI API reference, "Streaming events" (read November 2026). A stream that breaks ends
in `response.failed`, which clients understand; the bare `error` event is one that OpenAI's SDKs
read over.
"""

from collections.abc import Callable, Iterable

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import RequestError
from cortex_core.sse import encode_comment
from cortex_core.translate.parts import (
    Begin,
    Close,
    Delta,
    End,
    Fail,
    Finish,
    Open,
    PartEvent,
    PartKind,
    Usage,
)
from cortex_core.translate.responses_items import GrowingItem
from cortex_core.translate.responses_tools import ToolName, tool_names
from cortex_core.wire.responses.answer import (
    ConversationRef,
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseUsage,
)
from cortex_core.wire.responses.events import Event, ResponseEvent
from cortex_core.wire.responses.request import (
    Reasoning,
    ResponsesRequest,
    TextConfig,
    TextFormat,
)

SEALED = "reasoning.encrypted_content"
"""Entry of `include` that asks for thoughts in their opaque form."""

_INCOMPLETE = {
    Finish.LENGTH: "max_output_tokens",
    Finish.WINDOW: "max_output_tokens",
    Finish.CONTENT_FILTER: "content_filter",
}


def begun_response(
    request: ResponsesRequest,
    *,
    response_id: str,
    created_at: float,
    is_stored: bool,
    conversation_id: str | None = None,
    status: str = "in_progress",
) -> Response:
    """Return the response to `request` before anything is generated.

    Args:
        request: whose settings the response repeats.
        response_id: such as `resp_0a1b`.
        created_at: epoch seconds.
        is_stored: whether it is kept.
        conversation_id: of the conversation that it belongs to.
        status: `in_progress` or `queued`.
    """
    text = request.text or TextConfig()
    return Response(
        id=response_id,
        created_at=created_at,
        model=request.model,
        status=status,
        instructions=request.instructions,
        tools=request.tools or (),
        tool_choice=request.tool_choice or "auto",
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning=request.reasoning or Reasoning(),
        text=TextConfig(format=text.format or TextFormat(type="text"), verbosity=text.verbosity),
        temperature=request.temperature,
        top_p=request.top_p,
        top_logprobs=request.top_logprobs or 0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        previous_response_id=request.previous_response_id,
        conversation=None if conversation_id is None else ConversationRef(id=conversation_id),
        truncation=request.truncation or "disabled",
        store=is_stored,
        background=request.background is True,
        service_tier=request.service_tier,
        metadata=request.metadata or {},
        user=request.user,
        safety_identifier=request.safety_identifier,
        prompt_cache_key=request.prompt_cache_key,
    )


class ResponsesWriter:
    """`Writer` of responses.

    Args:
        request: as the caller wrote it.
        response: as `begun_response` made it.
        now: returns epoch seconds.
    """

    def __init__(
        self, request: ResponsesRequest, response: Response, now: Callable[[], float]
    ) -> None:
        self.response = response
        """As far as it is known."""
        self._now = now
        self._names = tool_names(request)
        self._salt = response.id.removeprefix("resp_")
        summary = request.reasoning.summary if request.reasoning else None
        self._has_summary = summary not in (None, "none")
        self._is_sealed = SEALED in (request.include or ())
        self._max_calls = request.max_tool_calls
        if request.parallel_tool_calls is False:
            self._max_calls = 1
        self._calls = 0
        self._output: list[OutputItem] = []
        self._open: GrowingItem | None = None
        self._sequence = 0
        self._has_begun = False
        self._has_ended = False

    def write(self, events: Iterable[PartEvent]) -> bytes:
        """Return the stream's next bytes."""
        out: list[bytes] = []
        for event in events:
            if self._has_ended:
                break
            if isinstance(event, Delta):
                self._delta(event, out)
            elif isinstance(event, Fail):
                out.append(self.fail(event.error))
            elif isinstance(event, End):
                self._close(out, _item_status(event))
                self._end(event, out)
            elif isinstance(event, Open):
                self._close(out, "completed")
                self._begin_item(event, out)
            elif isinstance(event, Begin):
                self._begin(out)
            elif isinstance(event, Close):
                # Whether it was cut off is known when the answer ends, or goes on.
                pass
        return b"".join(out)

    def whole(self, events: Iterable[PartEvent]) -> bytes:
        """Return the body of an answer that is no stream.

        Raises:
            RequestError: the sequence ends in `Fail`.
        """
        for event in events:
            if isinstance(event, Fail):
                self.fail(event.error)
                raise event.error
            self.write((event,))
        return encode_json(self.response)

    def fail(self, error: RequestError) -> bytes:
        """Return `response.failed`, after a beginning if there was none; nothing at the end."""
        if self._has_ended:
            return b""
        out: list[bytes] = []
        self._begin(out)
        self._has_ended = True
        self._keep_open_item()
        told = ResponseError(code=error.code or error.openai_type, message=error.message)
        self._finish(out, "failed", error=told)
        return b"".join(out)

    def keep_alive(self) -> bytes:
        """Return a comment."""
        return encode_comment("the answer is being made")

    def _begin(self, out: list[bytes]) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        self.response = msgspec.structs.replace(self.response, status="in_progress")
        for name in ("response.created", "response.in_progress"):
            self._send(ResponseEvent(type=name, sequence_number=0, response=self.response), out)

    def _begin_item(self, part: Open, out: list[bytes]) -> None:
        self._open = None
        if part.kind is PartKind.TOOL_CALL:
            self._calls += 1
            if self._max_calls is not None and self._calls > self._max_calls:
                return
        tool = self._names.get(part.name) or ToolName(name=part.name)
        self._open = GrowingItem(
            part.kind,
            len(self._output),
            self._salt,
            call_id=part.call_id,
            tool=tool if part.kind is PartKind.TOOL_CALL else None,
            has_summary=self._has_summary,
            is_sealed=self._is_sealed,
        )
        for event in self._open.opened():
            self._send(event, out)

    def _delta(self, delta: Delta, out: list[bytes]) -> None:
        if self._open is None:
            return
        event = self._open.delta(delta.text, delta.logprobs)
        if event is not None:
            self._send(event, out)

    def _close(self, out: list[bytes], status: str) -> None:
        if self._open is None:
            return
        for event in self._open.closed(status):
            self._send(event, out)
        self._output.append(self._open.item(status))
        self._open = None

    def _keep_open_item(self) -> None:
        if self._open is not None:
            self._output.append(self._open.item("incomplete"))
            self._open = None

    def _end(self, event: End, out: list[bytes]) -> None:
        self._has_ended = True
        usage, reason = _usage(event.usage), _INCOMPLETE.get(event.finish)
        if reason is None:
            self._finish(out, "completed", usage=usage)
        else:
            details = IncompleteDetails(reason=reason)
            self._finish(out, "incomplete", usage=usage, incomplete_details=details)

    def _finish(
        self,
        out: list[bytes],
        status: str,
        *,
        usage: ResponseUsage | None = None,
        error: ResponseError | None = None,
        incomplete_details: IncompleteDetails | None = None,
    ) -> None:
        self.response = msgspec.structs.replace(
            self.response,
            status=status,
            completed_at=self._now() if status == "completed" else None,
            output=tuple(self._output),
            usage=usage,
            error=error,
            incomplete_details=incomplete_details,
        )
        name = f"response.{status}"
        self._send(ResponseEvent(type=name, sequence_number=0, response=self.response), out)

    def _send(self, event: Event, out: list[bytes]) -> None:
        numbered = msgspec.structs.replace(event, sequence_number=self._sequence)
        self._sequence += 1
        out.append(b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode_json(numbered)))


def _item_status(event: End) -> str:
    return "incomplete" if event.finish in _INCOMPLETE else "completed"


def _usage(usage: Usage) -> ResponseUsage:
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return ResponseUsage(
        input_tokens=prompt,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens or 0),
        output_tokens=completion,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens or 0),
        total_tokens=prompt + completion,
    )
