"""Reads answers of chat completion upstreams: vLLM's, and those of others who speak it.

Source: OpenAI API reference, "The chat completion chunk object"; vLLM's serving code for
`reasoning`, `stop_reason` and continuous usage (both read November 2026). Other engines are met
half-way: calls without an index or an id, thoughts under another name, usage in any chunk.
"""

import re

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.errors import EngineError, RequestError, UpstreamCutError
from cortex_core.harness import Limit
from cortex_core.sse import SseDecoder
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
from cortex_core.translate.refusal import read_error_object
from cortex_core.wire.openai.chat import (
    CHAT_ANSWER_DECODER,
    ChatAnswer,
    ChatChoice,
    ChatDelta,
    ChatUsage,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
)

_DONE = "[DONE]"

_FINISHES = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
}

_NO_ID = re.compile(r"[^A-Za-z0-9_-]+")


class _Part:
    """A part that is open, or waits for its turn."""

    __slots__ = ("call", "call_id", "is_open", "kind", "name", "pending", "seen")

    def __init__(self, kind: PartKind, call: int | None = None) -> None:
        self.kind = kind
        self.call = call
        """Index of the call, as the upstream counts."""
        self.call_id = ""
        self.name = ""
        self.is_open = False
        self.pending: list[Delta] = []
        """What came and was not passed on."""
        self.seen: list[str] = []
        """Of a call: its arguments so far."""

    def is_complete(self) -> bool:
        """Whether a call's arguments are a whole JSON value; anything else always is."""
        if self.call is None:
            return True
        try:
            msgspec.json.decode("".join(self.seen), type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


class ChatReader:
    """`Reader` of chat completions; the first choice alone is read.

    Args:
        limit: of the model, to tell a full context from the caller's own limit.
    """

    def __init__(self, *, limit: Limit | None = None) -> None:
        self._limit = limit or Limit()
        self._decoder = SseDecoder()
        self._parts: list[_Part] = []
        """The open part first, then those that wait until it is complete."""
        self._opened = 0
        self._calls = 0
        self._closed: set[int] = set()
        """Calls that are complete."""
        self._ids: set[str] = set()
        self._answer_id = ""
        self._usage = Usage()
        self._deltas = 0
        self._finish: str | None = None
        self._stop_sequence: str | None = None
        self._has_begun = False
        self._has_ended = False

    def feed(self, data: bytes) -> list[PartEvent]:
        """Take the next bytes of a stream."""
        events: list[PartEvent] = []
        try:
            for event in self._decoder.feed(data):
                if self._has_ended:
                    break
                if event.data == _DONE:
                    self._end(events)
                else:
                    self._take(CHAT_ANSWER_DECODER.decode(event.data), events)
        except (msgspec.DecodeError, RecursionError):
            self._fail(UpstreamCutError("the upstream sent an event that cannot be read"), events)
        except RequestError as error:
            self._fail(error, events)
        return events

    def end(self) -> list[PartEvent]:
        """Take the end of the stream."""
        events: list[PartEvent] = []
        if not self._has_ended:
            self._fail(UpstreamCutError("the upstream's stream ended before its end"), events)
        return events

    def whole(self, body: bytes) -> list[PartEvent]:
        """Read a whole answer."""
        events: list[PartEvent] = []
        try:
            answer = CHAT_ANSWER_DECODER.decode(body)
            if not answer.choices and not answer.error:
                raise UpstreamCutError("the upstream's answer has no choices")
            self._take(answer, events)
            self._end(events)
        except (msgspec.DecodeError, RecursionError):
            self._fail(UpstreamCutError("the upstream's answer cannot be read"), events)
        except RequestError as error:
            self._fail(error, events)
        return events

    def _take(self, answer: ChatAnswer, events: list[PartEvent]) -> None:
        if bytes(answer.error) not in (b"", b"null"):
            raise read_error_object(bytes(answer.error), Dialect.OPENAI)
        if answer.usage is not None:
            self._usage = _usage_of(answer.usage)
        if not self._has_begun:
            self._has_begun = True
            self._answer_id = answer.id
            events.append(Begin(usage=self._usage))
        for choice in answer.choices:
            if choice.index == 0:
                self._choice(choice, events)

    def _choice(self, choice: ChatChoice, events: list[PartEvent]) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
            logprobs = (choice.logprobs and choice.logprobs.content) or ()
            self._delta(delta, logprobs, events)
        if choice.finish_reason == "abort":
            raise EngineError("the engine gave the request up")
        if choice.finish_reason is not None:
            self._finish = choice.finish_reason
        if isinstance(choice.stop_reason, str):
            self._stop_sequence = choice.stop_reason

    def _delta(
        self, delta: ChatDelta, logprobs: tuple[TokenLogprob, ...], events: list[PartEvent]
    ) -> None:
        if thought := delta.reasoning or delta.reasoning_content:
            self._text(PartKind.REASONING, thought, (), events)
        if delta.content:
            self._text(PartKind.TEXT, delta.content, logprobs, events)
        if delta.refusal:
            self._text(PartKind.REFUSAL, delta.refusal, (), events)
        for call in delta.tool_calls or ():
            self._call(call, events)
        if delta.function_call is not None:
            self._call(ToolCallDelta(index=0, function=delta.function_call), events)

    def _text(
        self,
        kind: PartKind,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        events: list[PartEvent],
    ) -> None:
        self._deltas += 1
        last = self._parts[-1] if self._parts else None
        if last is None or last.kind is not kind:
            last = self._add(_Part(kind))
        last.pending.append(Delta(text=text, logprobs=logprobs))
        self._flush(events)

    def _call(self, call: ToolCallDelta, events: list[PartEvent]) -> None:
        self._deltas += 1
        function = call.function or FunctionDelta()
        if call.index in self._closed:
            if (function.arguments or "").strip():
                raise UpstreamCutError("the upstream went on with a tool call that was complete")
            return
        part = self._part_of(call)
        if call.id and not part.call_id:
            part.call_id = call.id
        if function.name and not part.seen:
            part.name += function.name
        if function.arguments:
            part.seen.append(function.arguments)
            part.pending.append(Delta(text=function.arguments))
        self._flush(events)

    def _part_of(self, call: ToolCallDelta) -> _Part:
        """Return the part of a call, which an index, an id or the order tells."""
        calls = [part for part in self._parts if part.call is not None]
        if call.index is not None:
            known = next((part for part in calls if part.call == call.index), None)
            number = call.index
        else:
            known = calls[-1] if calls and not _is_another(call, calls[-1]) else None
            number = self._calls
        return self._add(_Part(PartKind.TOOL_CALL, number)) if known is None else known

    def _add(self, part: _Part) -> _Part:
        if part.call is not None:
            self._calls = max(self._calls, part.call) + 1
        self._parts.append(part)
        return part

    def _flush(self, events: list[PartEvent], *, is_end: bool = False) -> None:
        """Pass on what is not in another part's way."""
        while self._parts:
            part = self._parts[0]
            is_last = len(self._parts) == 1
            if part.pending or is_end or not is_last:
                self._open(part, events)
            if part.is_open:
                events.extend(part.pending)
                part.pending.clear()
            if is_last and not is_end:
                return
            if not is_end and not part.is_complete():
                return
            if part.is_open:
                events.append(Close())
            if part.call is not None:
                self._closed.add(part.call)
            del self._parts[0]

    def _open(self, part: _Part, events: list[PartEvent]) -> None:
        if part.is_open:
            return
        if part.call is None:
            events.append(Open(index=self._opened, kind=part.kind))
        else:
            if not part.name:
                if not part.seen:
                    return
                raise UpstreamCutError("the upstream sent a tool call without a name")
            call_id = self._unique(part.call_id)
            events.append(Open(index=self._opened, kind=part.kind, call_id=call_id, name=part.name))
        part.is_open = True
        self._opened += 1

    def _unique(self, call_id: str) -> str:
        """Return an id that no other call of the conversation has."""
        if not call_id or call_id in self._ids:
            salt = _NO_ID.sub("", self._answer_id) or "answer"
            call_id = f"call_{salt}_{len(self._ids)}"
        self._ids.add(call_id)
        return call_id

    def _end(self, events: list[PartEvent]) -> None:
        self._flush(events, is_end=True)
        self._has_ended = True
        if not self._has_begun:
            events.append(Begin(usage=self._usage))
        usage = self._usage
        if usage.completion_tokens is None and self._deltas:
            # Every delta is a token at least.
            usage = msgspec.structs.replace(usage, completion_tokens=self._deltas)
        events.append(
            End(finish=self._finished(usage), stop_sequence=self._stop_sequence, usage=usage)
        )

    def _finished(self, usage: Usage) -> Finish:
        finish = _FINISHES.get(self._finish or "stop", Finish.STOP)
        if finish is Finish.LENGTH:
            context = self._limit.context
            used = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
            return Finish.WINDOW if context is not None and used >= context else finish
        if self._ids and finish is Finish.STOP:
            return Finish.TOOL_CALLS
        return finish

    def _fail(self, error: RequestError, events: list[PartEvent]) -> None:
        self._has_ended = True
        self._parts.clear()
        events.append(Fail(error=error))


def _is_another(call: ToolCallDelta, last: _Part) -> bool:
    """Whether a call without an index is not the one before."""
    if call.id:
        return call.id != last.call_id
    return bool(call.function and call.function.name and last.seen)


def _usage_of(usage: ChatUsage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=None if prompt is None else prompt.cached_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=None if completion is None else completion.reasoning_tokens,
    )
