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


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    id: str = ""
    name: str = ""
    input: Mapping[str, object] = msgspec.field(default_factory=dict)


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
    signature: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """Any event of a stream."""

    type: str = ""
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    # Beside `None` msgspec takes `Raw` for nothing at all.
    error: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)


class _Whole(_Message, frozen=True, kw_only=True):
    error: msgspec.Raw = msgspec.Raw()
    type: str = "message"


_WHOLE = msgspec.json.Decoder(_Whole)


class MessagesReader:
    """`Reader` of messages."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()
        self._usage = Usage()
        self._kind: PartKind | None = None
        self._signature = ""
        self._opened = 0
        self._deltas = 0
        self._finish = Finish.STOP
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
                self._take(_EVENT.decode(event.data), events)
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
            message = _WHOLE.decode(body)
            if message.type == "error":
                raise read_error_object(bytes(message.error), Dialect.ANTHROPIC)
            self._begin(message, events)
            for block in message.content:
                self._whole_block(block, events)
            self._stopped(message.stop_reason, message.stop_sequence)
            self._end(events)
        except (msgspec.DecodeError, RecursionError):
            self._fail(UpstreamCutError("the upstream's answer cannot be read"), events)
        except RequestError as error:
            self._fail(error, events)
        return events

    def _take(self, event: _Event, events: list[PartEvent]) -> None:
        match event.type:
            case "content_block_delta" if event.delta is not None:
                self._delta(event.delta, events)
            case "content_block_start" if event.content_block is not None:
                self._open(event.content_block, events)
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
            self._usage = msgspec.structs.replace(self._usage, completion_tokens=None)
            events.append(Begin(usage=self._usage))

    def _open(self, block: _Block, events: list[PartEvent]) -> None:
        self._close(events)
        kind = _KINDS.get(block.type)
        if kind is None:
            return
        if not self._has_begun:
            raise UpstreamCutError("the upstream's stream has no beginning")
        if kind is PartKind.TOOL_CALL and not (block.id and block.name):
            raise UpstreamCutError("the upstream sent a tool call without a name or an id")
        self._kind, self._signature = kind, block.signature
        events.append(Open(index=self._opened, kind=kind, call_id=block.id, name=block.name))
        self._opened += 1
        self._text(block.text or block.thinking, events)

    def _delta(self, delta: _Delta, events: list[PartEvent]) -> None:
        if self._kind is None:
            return
        self._signature += delta.signature
        self._text(delta.text or delta.thinking or delta.partial_json, events)

    def _text(self, text: str, events: list[PartEvent]) -> None:
        if text:
            self._deltas += 1
            events.append(Delta(text=text))

    def _close(self, events: list[PartEvent]) -> None:
        if self._kind is not None:
            events.append(Close(signature=self._signature or None))
            self._kind = None

    def _whole_block(self, block: _Block, events: list[PartEvent]) -> None:
        self._open(block, events)
        if self._kind is PartKind.TOOL_CALL and block.input:
            self._text(encode_json(block.input).decode(), events)
        self._close(events)

    def _count(self, usage: _Usage | None) -> None:
        """Take usage, whose later reports replace earlier ones."""
        if usage is None:
            return
        known = self._usage
        prompt, cached = known.prompt_tokens, known.cached_tokens
        if usage.input_tokens is not None:
            cached = usage.cache_read_input_tokens
            created = usage.cache_creation_input_tokens or 0
            prompt = usage.input_tokens + created + (cached or 0)
        self._usage = Usage(
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=(
                known.completion_tokens if usage.output_tokens is None else usage.output_tokens
            ),
        )

    def _stopped(self, reason: str | None, sequence: str | None) -> None:
        if reason is not None:
            self._finish = _FINISHES.get(reason, Finish.STOP)
            self._stop_sequence = sequence if reason == "stop_sequence" else None

    def _end(self, events: list[PartEvent]) -> None:
        self._close(events)
        if not self._has_begun:
            raise UpstreamCutError("the upstream's stream has no beginning")
        self._has_ended = True
        usage = self._usage
        if usage.completion_tokens is None and self._deltas:
            # Every delta is a token at least.
            usage = msgspec.structs.replace(usage, completion_tokens=self._deltas)
        events.append(End(finish=self._finish, stop_sequence=self._stop_sequence, usage=usage))

    def _fail(self, error: RequestError, events: list[PartEvent]) -> None:
        self._has_ended = True
        self._kind = None
        events.append(Fail(error=error))
