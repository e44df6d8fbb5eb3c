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
from cortex_core.translate.refusal import MAX_MESSAGE_CHARS, read_error_object
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

_BROKEN = ("abort", "error")
"""Finish reasons of vLLM for requests that it gave up."""

_JSON = msgspec.json.Decoder(msgspec.Raw)

_NO_ID = re.compile(r"[^A-Za-z0-9_-]+")


class _Part:
    """A part that is open, or waits for its turn."""

    __slots__ = ("call", "call_id", "is_open", "kind", "name", "pending", "seen", "tried")

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
        self.tried = 0
        """How many of these were there when they were no JSON yet."""

    def is_complete(self) -> bool:
        """Whether a call's arguments are a whole JSON value; anything else always is."""
        if self.call is None:
            return True
        if self.tried == len(self.seen):
            return False
        self.tried = len(self.seen)
        try:
            _JSON.decode("".join(self.seen))
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
        self._usage: ChatUsage | None = None
        """The latest that came; later reports replace earlier ones."""
        self._deltas = 0
        self._logprobs: tuple[TokenLogprob, ...] = ()
        """Of tokens whose text the upstream still holds back."""
        self._finish: str | None = None
        self._stop_sequence: str | None = None
        self._has_begun = False
        self._has_ended = False

    def feed(self, data: bytes) -> list[PartEvent]:
        """Take the next bytes of a stream."""
        events: list[PartEvent] = []
        if self._has_ended:
            return events
        try:
            for event in self._decoder.feed(data):
                if event.data == _DONE:
                    self._end(events)
                    break
                self._take(CHAT_ANSWER_DECODER.decode(event.data), events)
        except (msgspec.DecodeError, RecursionError):
            self._fail(UpstreamCutError("the upstream sent an event that cannot be read"), events)
        except RequestError as error:
            self._fail(error, events)
        return events

    def end(self) -> list[PartEvent]:
        """Take the end of the stream."""
        # Some servers leave out the blank line after the last event.
        events = self.feed(b"\n\n")
        if not self._has_ended:
            self._fail(UpstreamCutError("the upstream's stream ended before its end"), events)
        return events

    def whole(self, body: bytes) -> list[PartEvent]:
        """Read a whole answer."""
        events: list[PartEvent] = []
        try:
            answer = CHAT_ANSWER_DECODER.decode(body)
            self._take(answer, events)
            if not answer.choices:
                raise UpstreamCutError("the upstream's answer has no choices")
            self._end(events)
        except (msgspec.DecodeError, RecursionError):
            return [Fail(error=UpstreamCutError("the upstream's answer cannot be read"))]
        except RequestError as error:
            return [Fail(error=error)]
        return events

    def _take(self, answer: ChatAnswer, events: list[PartEvent]) -> None:
        if bytes(answer.error) not in (b"", b"null"):
            raise read_error_object(bytes(answer.error), Dialect.OPENAI)
        if answer.object == "error":
            # Older versions of vLLM, and servers that copied them.
            raise EngineError(answer.message[:MAX_MESSAGE_CHARS] or "the engine failed")
        if answer.usage is not None:
            self._usage = answer.usage
        if not self._has_begun:
            self._has_begun = True
            self._answer_id = answer.id or ""
            events.append(Begin(usage=_usage_of(self._usage)))
        for choice in answer.choices:
            if choice.index == 0:
                self._choice(choice, events)

    def _choice(self, choice: ChatChoice, events: list[PartEvent]) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
            logprobs = (choice.logprobs and choice.logprobs.content) or ()
            self._delta(delta, logprobs, events)
        if choice.finish_reason in _BROKEN:
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
            logprobs, self._logprobs = self._logprobs + logprobs, ()
            self._text(PartKind.TEXT, delta.content, logprobs, events)
        elif logprobs and not thought:
            self._logprobs += logprobs
        if delta.refusal:
            self._text(PartKind.REFUSAL, delta.refusal, (), events)
        if delta.tool_calls:
            self._several(delta.tool_calls, events)
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
            last = _Part(kind)
            self._parts.append(last)
        last.pending.append(Delta(text=text, logprobs=logprobs))
        self._flush(events)

    def _several(self, calls: tuple[ToolCallDelta, ...], events: list[PartEvent]) -> None:
        """Take the pieces of one chunk; without an index each is a call of its own."""
        is_whole = len(calls) > 1 and all(call.index is None for call in calls)
        for call in calls:
            self._call(call, events, is_whole=is_whole)

    def _call(
        self, call: ToolCallDelta, events: list[PartEvent], *, is_whole: bool = False
    ) -> None:
        self._deltas += 1
        function = call.function or FunctionDelta()
        part = None if is_whole else self._known(call)
        if part is None:
            if call.index in self._closed and not (call.id and function.name):
                if (function.arguments or "").strip():
                    raise UpstreamCutError("the upstream went on with a call that was complete")
                return
            part = self._add(call.index)
        is_repeat = bool(call.id) and call.id == part.call_id and function.name == part.name
        if call.id and not part.call_id:
            part.call_id = call.id
        if function.name and not part.seen and not is_repeat:
            part.name += function.name
        if function.arguments:
            part.seen.append(function.arguments)
            part.pending.append(Delta(text=function.arguments))
        self._flush(events)

    def _known(self, call: ToolCallDelta) -> _Part | None:
        """Return the part that a piece goes on with, which its index, its id or the order tells."""
        for part in reversed(self._parts):
            if part.call is not None and call.index in (None, part.call):
                return None if _is_another(call, part) else part
        return None

    def _add(self, call: int | None) -> _Part:
        number = self._calls if call is None else call
        self._calls = max(self._calls, number + 1)
        part = _Part(PartKind.TOOL_CALL, number)
        self._parts.append(part)
        return part

    def _flush(self, events: list[PartEvent], *, is_end: bool = False) -> None:
        """Pass on what is not in another part's way."""
        while self._parts:
            part = self._parts[0]
            is_last = len(self._parts) == 1
            # The name of a call may go on until its arguments begin.
            if part.pending or is_end:
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
        salt = _NO_ID.sub("", self._answer_id) or "answer"
        number = len(self._ids)
        while not call_id or call_id in self._ids:
            call_id = f"call_{salt}_{number}"
            number += 1
        self._ids.add(call_id)
        return call_id

    def _end(self, events: list[PartEvent]) -> None:
        self._flush(events, is_end=True)
        self._has_ended = True
        usage = _usage_of(self._usage)
        if not self._has_begun:
            events.append(Begin(usage=usage))
        if not usage.completion_tokens and self._deltas:
            # Every delta is a token at least.
            usage = msgspec.structs.replace(usage, completion_tokens=self._deltas)
        finish = self._finished(usage)
        stop = self._stop_sequence if finish is Finish.STOP else None
        events.append(End(finish=finish, stop_sequence=stop, usage=usage))

    def _finished(self, usage: Usage) -> Finish:
        finish = _FINISHES.get(self._finish or "stop", Finish.STOP)
        if finish is Finish.LENGTH:
            context = self._limit.context
            used = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
            return Finish.WINDOW if context is not None and used >= context else finish
        if finish is Finish.CONTENT_FILTER:
            return finish
        # Engines say `stop` for calls that were asked for by name.
        return Finish.TOOL_CALLS if self._ids else Finish.STOP

    def _fail(self, error: RequestError, events: list[PartEvent]) -> None:
        self._has_ended = True
        self._parts.clear()
        events.append(Fail(error=error))


def _is_another(call: ToolCallDelta, last: _Part) -> bool:
    """Whether a piece begins a call, although its index does not tell it from the one before.

    Some engines leave the index out, and some send 0 with every call.
    """
    name = call.function.name if call.function is not None else None
    if call.id and last.call_id:
        return call.id != last.call_id and bool(name)
    return call.index is None and bool(name) and bool(last.seen)


def _usage_of(usage: ChatUsage | None) -> Usage:
    if usage is None:
        return Usage()
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=None if prompt is None else prompt.cached_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=None if completion is None else completion.reasoning_tokens,
    )
