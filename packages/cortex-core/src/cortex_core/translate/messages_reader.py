"""Reads answers of upstreams that speak Anthropic's Messages dialect.

Source: Anthropic API reference, "Streaming messages" (read November 2026). Blocks that only the
hosted service can make sense of are read over, and so are events of a kind not known here.
"""

from collections.abc import Mapping

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect
from cortex_core.errors import RequestError, UpstreamCutError
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

_FINISHES = {
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "pause_turn": Finish.STOP,
    "max_tokens": Finish.LENGTH,
    "model_context_window_exceeded": Finish.WINDOW,
    "tool_use": Finish.TOOL_CALLS,
    "refusal": Finish.CONTENT_FILTER,
}

_KINDS = {
    "text": PartKind.TEXT,
    "thinking": PartKind.REASONING,
    "tool_use": PartKind.TOOL_CALL,
}


class _OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str | None = None
    id: str = ""
    name: str = ""
    input: Mapping[str, object] | None = None


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    content: tuple[_Block, ...] = ()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None


class _Delta(msgspec.Struct, frozen=True, kw_only=True):
    """Delta of a block, or of the message."""

    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    signature: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """Any event of a stream."""

    type: str = ""
    index: int | None = None
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    # Beside `None` msgspec takes `Raw` for nothing at all.
    error: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)


class _Whole(_Message, frozen=True, kw_only=True):
    error: msgspec.Raw = msgspec.Raw()
    type: str = ""


_WHOLE = msgspec.json.Decoder(_Whole)


class MessagesReader:
    """`Reader` of messages."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()
        self._counts = _Usage()
        self._kind: PartKind | None = None
        """Of the open block; `None` when none is, or one that is read over."""
        self._index: int | None = None
        """Of the open block, as the upstream counts."""
        self._signature: str | None = None
        self._input = ""
        """Arguments that a call came with at once; what follows replaces them."""
        self._opened = 0
        self._deltas = 0
        self._ids: set[str] = set()
        """Of the calls; callers pair results with calls by id alone."""
        self._finish = Finish.STOP
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
                self._take(_EVENT.decode(event.data), events)
                if events and isinstance(events[-1], End):
                    break
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
            message = _WHOLE.decode(body)
            if message.type == "error":
                raise read_error_object(bytes(message.error), Dialect.ANTHROPIC)
            if message.type != "message":
                raise UpstreamCutError("the upstream's answer is no message")
            self._begin(message, events)
            for block in message.content:
                self._open(block, None, events)
                self._close(events)
            self._stopped(message.stop_reason, message.stop_sequence)
            self._end(events)
        except (msgspec.DecodeError, RecursionError):
            return [Fail(error=UpstreamCutError("the upstream's answer cannot be read"))]
        except RequestError as error:
            return [Fail(error=error)]
        return events

    def _take(self, event: _Event, events: list[PartEvent]) -> None:
        match event.type:
            case "content_block_delta" if event.delta is not None:
                self._delta(event.delta, event.index, events)
            case "content_block_start" if event.content_block is not None:
                self._open(event.content_block, event.index, events)
            case "content_block_stop":
                self._close(events)
            case "message_start" if event.message is not None:
                self._begin(event.message, events)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None:
                    self._stopped(event.delta.stop_reason, event.delta.stop_sequence)
            case "message_stop":
                self._end(events)
            case "error":
                raise read_error_object(bytes(event.error), Dialect.ANTHROPIC)
            case _:
                pass

    def _begin(self, message: _Message, events: list[PartEvent]) -> None:
        self._count(message.usage)
        if not self._has_begun:
            self._has_begun = True
            # What was generated so far is a guess of the upstream's, and no count.
            usage = _usage_of(self._counts)
            events.append(Begin(usage=msgspec.structs.replace(usage, completion_tokens=None)))

    def _open(self, block: _Block, index: int | None, events: list[PartEvent]) -> None:
        self._close(events)
        self._index = index
        kind = _KINDS.get(block.type)
        if kind is None:
            return
        if not self._has_begun:
            raise UpstreamCutError("the upstream's stream has no beginning")
        self._kind, self._signature = kind, block.signature
        call_id = name = ""
        if kind is PartKind.TOOL_CALL:
            call_id, name = block.id, block.name
            if not (call_id and name):
                raise UpstreamCutError("the upstream sent a tool call without a name or an id")
            while call_id in self._ids:
                call_id += "_"
            self._ids.add(call_id)
            self._input = encode_json(block.input).decode() if block.input else ""
        events.append(Open(index=self._opened, kind=kind, call_id=call_id, name=name))
        self._opened += 1
        if kind is not PartKind.TOOL_CALL:
            self._text(block.text if kind is PartKind.TEXT else block.thinking, events)

    def _delta(self, delta: _Delta, index: int | None, events: list[PartEvent]) -> None:
        if index != self._index and index is not None:
            raise UpstreamCutError("the upstream went on with a block that is not open")
        if self._kind is PartKind.TEXT:
            self._text(delta.text, events)
        elif self._kind is PartKind.TOOL_CALL:
            self._text(delta.partial_json, events)
        elif self._kind is PartKind.REASONING:
            self._signature = delta.signature or self._signature
            self._text(delta.thinking, events)

    def _text(self, text: str, events: list[PartEvent]) -> None:
        if text:
            self._deltas += 1
            self._input = ""
            events.append(Delta(text=text))

    def _close(self, events: list[PartEvent]) -> None:
        if self._kind is not None:
            self._text(self._input, events)
            events.append(Close(signature=self._signature or None))
            self._kind = None
        self._index = None

    def _count(self, usage: _Usage | None) -> None:
        """Take usage: what is reported later replaces what came before, the rest stays."""
        if usage is None:
            return
        told = {
            name: count
            for name in _Usage.__struct_fields__
            if (count := getattr(usage, name)) is not None
        }
        self._counts = msgspec.structs.replace(self._counts, **told)

    def _stopped(self, reason: str | None, sequence: str | None) -> None:
        if reason is not None:
            self._finish = _FINISHES.get(reason, Finish.STOP)
            self._stop_sequence = sequence if reason == "stop_sequence" else None

    def _end(self, events: list[PartEvent]) -> None:
        self._close(events)
        if not self._has_begun:
            raise UpstreamCutError("the upstream's stream has no beginning")
        self._has_ended = True
        usage = _usage_of(self._counts)
        if not usage.completion_tokens and self._deltas:
            # Every delta is a token at least.
            usage = msgspec.structs.replace(usage, completion_tokens=self._deltas)
        finish, stop = self._finish, self._stop_sequence
        if finish in (Finish.STOP, Finish.TOOL_CALLS):
            finish = Finish.TOOL_CALLS if self._ids else Finish.STOP
        events.append(
            End(
                finish=finish,
                stop_sequence=stop if finish is Finish.STOP else None,
                usage=usage,
            )
        )

    def _fail(self, error: RequestError, events: list[PartEvent]) -> None:
        self._has_ended = True
        self._kind = None
        events.append(Fail(error=error))


def _usage_of(counts: _Usage) -> Usage:
    cached, details = counts.cache_read_input_tokens, counts.output_tokens_details
    prompt = None
    if counts.input_tokens is not None:
        prompt = counts.input_tokens + (counts.cache_creation_input_tokens or 0) + (cached or 0)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=counts.output_tokens,
        reasoning_tokens=None if details is None else details.thinking_tokens,
    )
