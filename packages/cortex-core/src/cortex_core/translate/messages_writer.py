"""Writes answers in Anthropic's Messages dialect.

Source: Anthropic API reference, "Streaming messages" (read November 2026). Every event has an
`event:` line, because clients drop those without one, and no `[DONE]` follows.
"""

import enum
from collections.abc import Iterable

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_event
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
from cortex_core.translate.sealed import seal
from cortex_core.wire.anthropic.answer import (
    MessageAnswer,
    MessageUsage,
    OutputTokensDetails,
    StopDetails,
    TextContent,
    ThinkingContent,
    ToolUseContent,
)
from cortex_core.wire.anthropic.request import MessagesRequest

_STOP_REASONS = {
    Finish.STOP: "end_turn",
    Finish.LENGTH: "max_tokens",
    Finish.WINDOW: "model_context_window_exceeded",
    Finish.TOOL_CALLS: "tool_use",
    Finish.CONTENT_FILTER: "refusal",
}

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

_DELTAS = {
    PartKind.REASONING: b'"delta":{"type":"thinking_delta","thinking":',
    PartKind.TEXT: b'"delta":{"type":"text_delta","text":',
    PartKind.REFUSAL: b'"delta":{"type":"text_delta","text":',
    PartKind.TOOL_CALL: b'"delta":{"type":"input_json_delta","partial_json":',
}
"""The part of a delta event before its text, by the kind of the open part."""

_OBJECT = msgspec.json.Decoder(dict[str, object])


class ThinkingDisplay(enum.Enum):
    """What a caller gets to see of thoughts."""

    SHOWN = "shown"
    OMITTED = "omitted"
    """A block without text, whose signature holds it."""
    HIDDEN = "hidden"
    """Nothing at all."""


def messages_writer_for(
    request: MessagesRequest, *, message_id: str, request_id: str
) -> "MessagesWriter":
    """Return a writer for the answer to `request`.

    Args:
        request: as the caller wrote it.
        message_id: for the answer.
        request_id: for error events.
    """
    thinking, choice = request.thinking, request.tool_choice
    if thinking is None or thinking.type == "disabled":
        display = ThinkingDisplay.HIDDEN
    elif thinking.display == "omitted":
        display = ThinkingDisplay.OMITTED
    else:
        display = ThinkingDisplay.SHOWN
    return MessagesWriter(
        model=request.model,
        message_id=message_id,
        request_id=request_id,
        thinking=display,
        single_call=choice is not None and choice.disable_parallel_tool_use is True,
        discard_output=request.max_tokens == 0,
    )


class MessagesWriter:
    """`Writer` of messages.

    Args:
        model: as the caller named it.
        message_id: such as `msg_0a1b`.
        request_id: for error events.
        thinking: what is shown of thoughts.
        single_call: drop whatever comes after the first tool call.
        discard_output: send no content at all, as a request for no tokens wants it.
    """

    def __init__(
        self,
        *,
        model: str,
        message_id: str,
        request_id: str = "",
        thinking: ThinkingDisplay = ThinkingDisplay.SHOWN,
        single_call: bool = False,
        discard_output: bool = False,
    ) -> None:
        self._message = MessageAnswer(id=message_id, model=model)
        self._request_id = request_id
        self._thinking = thinking
        self._single_call = single_call
        self._discard_output = discard_output
        self._kind: PartKind | None = None
        """Of the open block; `None` when none is, or a dropped part is open."""
        self._index = -1
        self._prefix = b""
        """Of the open block's delta events."""
        self._thoughts: list[str] = []
        self._has_answer = False
        """Whether there was a block that is no thoughts."""
        self._has_call = False
        self._has_surplus = False
        """Whether something was dropped because it came after the only call."""
        self._has_refused = False
        self._has_begun = False
        self._has_ended = False

    def write(self, events: Iterable[PartEvent]) -> bytes:
        """Return the stream's next bytes."""
        out: list[bytes] = []
        for event in events:
            if self._has_ended:
                break
            match event:
                case Delta():
                    self._delta(event.text, out)
                case Open():
                    self._open(event, out)
                case Close():
                    self._close(event, out)
                case Begin():
                    self._begin(event.usage, out)
                case End():
                    self._end(event, out)
                case Fail():
                    out.append(self.fail(event.error))
        return b"".join(out)

    def whole(self, events: Iterable[PartEvent]) -> bytes:
        """Return the body of an answer that is no stream.

        Raises:
            RequestError: the sequence ends in `Fail`.
        """
        fold = _Fold(omits_thoughts=self._thinking is ThinkingDisplay.OMITTED)
        for event in events:
            match event:
                case Open() if self._drops(event):
                    fold.skip()
                case Open():
                    self._has_call |= event.kind is PartKind.TOOL_CALL
                    self._has_refused |= event.kind is PartKind.REFUSAL
                    fold.open(event)
                case Delta():
                    fold.delta(event.text)
                case Close():
                    fold.close(event)
                case End():
                    is_cut = event.finish in (Finish.LENGTH, Finish.WINDOW)
                    return encode_json(self._ended(event, fold.content(is_cut=is_cut)))
                case Fail():
                    raise event.error
                case Begin():
                    pass
        raise ValueError("the sequence has no end")

    def fail(self, error: RequestError) -> bytes:
        """Return the error event; nothing when the stream has ended."""
        if self._has_ended:
            return b""
        self._has_ended = True
        return error_event(error, Dialect.ANTHROPIC, self._request_id)

    def keep_alive(self) -> bytes:
        """Return a ping; a comment before the message has begun, nothing after its end."""
        if self._has_ended:
            return b""
        return _PING if self._has_begun else encode_comment("the answer is being made")

    def _drops(self, part: Open) -> bool:
        """Whether a part is not for this caller's eyes."""
        if self._discard_output:
            return True
        if self._single_call and self._has_call:
            self._has_surplus = True
            return True
        return part.kind is PartKind.REASONING and self._thinking is ThinkingDisplay.HIDDEN

    def _begin(self, usage: Usage, out: list[bytes]) -> None:
        self._has_begun = True
        message = msgspec.structs.replace(self._message, usage=_usage(usage))
        start = b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n'
        out += (start % encode_json(message), _PING)

    def _open(self, part: Open, out: list[bytes]) -> None:
        if self._drops(part):
            return
        self._kind = part.kind
        self._has_call |= part.kind is PartKind.TOOL_CALL
        self._has_refused |= part.kind is PartKind.REFUSAL
        self._thoughts.clear()
        block: TextContent | ThinkingContent | ToolUseContent
        if part.kind is PartKind.TOOL_CALL:
            block = ToolUseContent(id=part.call_id, name=part.name)
        elif part.kind is PartKind.REASONING:
            block = ThinkingContent(thinking="")
        else:
            block = TextContent(text="")
        self._start_block(block, out)
        self._prefix = b'event: content_block_delta\ndata: {"type":"content_block_delta",'
        self._prefix += b'"index":%d,' % self._index + _DELTAS[part.kind]

    def _start_block(
        self, block: TextContent | ThinkingContent | ToolUseContent, out: list[bytes]
    ) -> None:
        self._index += 1
        self._has_answer |= not isinstance(block, ThinkingContent)
        start = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,'
        out.append(start % self._index + b'"content_block":%b}\n\n' % encode_json(block))

    def _delta(self, text: str, out: list[bytes]) -> None:
        if self._kind is None:
            return
        if self._kind is PartKind.REASONING:
            self._thoughts.append(text)
            if self._thinking is ThinkingDisplay.OMITTED:
                return
        out.append(self._prefix + encode_json(text) + b"}}\n\n")

    def _close(self, part: Close, out: list[bytes]) -> None:
        if self._kind is None:
            return
        if self._kind is PartKind.REASONING:
            signature = part.signature or seal("".join(self._thoughts))
            delta = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            delta += b'"delta":{"type":"signature_delta","signature":%b}}\n\n'
            out.append(delta % (self._index, encode_json(signature)))
        self._stop_block(out)
        self._kind = None

    def _stop_block(self, out: list[bytes]) -> None:
        stop = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
        out.append(stop % self._index)

    def _end(self, event: End, out: list[bytes]) -> None:
        self._has_ended = True
        if not self._has_answer:
            # Clients take the last text of a message, and there must be one.
            self._start_block(TextContent(text=""), out)
            self._stop_block(out)
        ended = self._ended(event, ())
        delta = {
            "stop_reason": ended.stop_reason,
            "stop_sequence": ended.stop_sequence,
            "stop_details": ended.stop_details,
        }
        message = {"type": "message_delta", "delta": delta, "usage": ended.usage}
        out += (b"event: message_delta\ndata: %b\n\n" % encode_json(message), _STOP)

    def _ended(
        self, event: End, content: tuple[TextContent | ThinkingContent | ToolUseContent, ...]
    ) -> MessageAnswer:
        """Return the message with everything that its end tells."""
        reason = _STOP_REASONS[event.finish]
        if self._discard_output:
            reason = "max_tokens"
        elif self._has_surplus:
            # Whatever ended the answer later, what is shown of it ends with a complete call.
            reason = "tool_use"
        elif self._has_refused and event.finish is Finish.STOP:
            reason = "refusal"
        elif event.finish is Finish.STOP and event.stop_sequence is not None:
            reason = "stop_sequence"
        return msgspec.structs.replace(
            self._message,
            content=content,
            stop_reason=reason,
            stop_sequence=event.stop_sequence if reason == "stop_sequence" else None,
            stop_details=StopDetails() if reason == "refusal" else None,
            usage=_usage(event.usage),
        )


class _Fold:
    """Collects the content of a whole message."""

    def __init__(self, *, omits_thoughts: bool) -> None:
        self._omits = omits_thoughts
        self._content: list[TextContent | ThinkingContent | ToolUseContent] = []
        self._broken: list[ToolUseContent] = []
        """Calls of the content whose arguments are no object."""
        self._part: Open | None = None
        self._texts: list[str] = []

    def skip(self) -> None:
        """Leave out the part that begins."""
        self._part = None

    def open(self, part: Open) -> None:
        """Begin a part."""
        self._part = part
        self._texts.clear()

    def delta(self, text: str) -> None:
        """Take more of the part."""
        self._texts.append(text)

    def close(self, event: Close) -> None:
        """End the part."""
        part, text = self._part, "".join(self._texts)
        self._part = None
        if part is None:
            return
        if part.kind is PartKind.TOOL_CALL:
            self._call(part, text)
        elif part.kind is PartKind.REASONING:
            signature = event.signature or seal(text)
            shown = "" if self._omits else text
            self._content.append(ThinkingContent(thinking=shown, signature=signature))
        else:
            self._content.append(TextContent(text=text))

    def content(
        self, *, is_cut: bool
    ) -> tuple[TextContent | ThinkingContent | ToolUseContent, ...]:
        """Return all blocks; never none.

        Args:
            is_cut: whether a limit ended the answer, perhaps within a call's arguments. Such a
                call is left out when there is something else to show.
        """
        content = self._content
        if is_cut:
            kept = [block for block in content if not any(block is call for call in self._broken)]
            content = kept if _has_answer(kept) else content
        if not _has_answer(content):
            # Clients take the last text of a message, and there must be one.
            return (*content, TextContent(text=""))
        return tuple(content)

    def _call(self, part: Open, text: str) -> None:
        try:
            given = _OBJECT.decode(text) if text.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            # `input` is an object, and no guess of ours would be what was meant.
            given = None
        call = ToolUseContent(id=part.call_id, name=part.name, input=given or {})
        self._content.append(call)
        if given is None:
            self._broken.append(call)


def _has_answer(content: list[TextContent | ThinkingContent | ToolUseContent]) -> bool:
    return any(not isinstance(block, ThinkingContent) for block in content)


def _usage(usage: Usage) -> MessageUsage:
    """Return usage as this dialect counts: cached tokens are no part of `input_tokens`."""
    cached = usage.cached_tokens or 0
    details = None
    if usage.reasoning_tokens is not None:
        details = OutputTokensDetails(thinking_tokens=usage.reasoning_tokens)
    return MessageUsage(
        input_tokens=max(0, (usage.prompt_tokens or 0) - cached),
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens or 0,
        output_tokens_details=details,
    )
