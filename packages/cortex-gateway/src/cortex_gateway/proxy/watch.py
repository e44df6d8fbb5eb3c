"""What an answer tells while it passes: whole events, the first content, the terminator, usage.

A chunk costs a few byte searches. JSON is decoded once, at the end, of the last few chunks only.
"""

import collections
import re

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.routing.retry import Failure
from cortex_core.sse import MAX_EVENT_BYTES
from cortex_gateway.ports import UpstreamFailure

_TAIL_CHUNKS = 4
"""Finish, usage and terminator come in the last events, so at most in that many chunks."""

_START = b"message_start"

_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\n\r", b"\r\r")
_DATA = re.compile(rb"(?:^|(?<=[\r\n]))data: ?(\{[^\r\n]*)")


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """How the streams of a dialect are read without decoding them."""

    done: bytes
    """Part of the terminator that is searched for first, because that costs next to nothing."""
    terminator: re.Pattern[bytes]
    """Its line, and what follows it up to the end of its event."""
    content: re.Pattern[bytes]
    """Any delta but an empty one."""


OPENAI_MARKS = Marks(
    done=b"[DONE]",
    terminator=re.compile(rb"(?:^|(?<=[\r\n]))data: ?\[DONE\](?:\r\n|\n|\r|$)"),
    # Text, reasoning, a refusal, a tool call, or a completion's text.
    content=re.compile(
        rb'"(?:content|text|reasoning|reasoning_content|refusal|arguments)"\s*:\s*"[^"]'
        rb'|"tool_calls"\s*:\s*\[\s*\{'
    ),
)

MESSAGES_MARKS = Marks(
    done=b"message_stop",
    terminator=re.compile(
        rb"(?:^|(?<=[\r\n]))event: ?message_stop(?:\r\n|\n|\r)(?:data:[^\r\n]*(?:\r\n|\n|\r|$))?"
    ),
    content=re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"[^"]|"tool_use"'),
)


class PromptDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """`usage` of an answer (OpenAI API reference, "The chat completion object")."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    usage: Usage | None = None
    choices: tuple[_Choice, ...] = ()
    # Beside `None` msgspec takes `Raw` for nothing at all.
    error: msgspec.Raw = msgspec.Raw()


class _MessagesUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int | None = None
    """Missing from the events that end a stream, where a server says it only at the beginning."""
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _MessageDelta(msgspec.Struct, frozen=True, kw_only=True):
    stop_reason: str | None = None


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    usage: _MessagesUsage | None = None


class _MessagesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A message, or the events that begin and end one."""

    message: _Begun | None = None
    usage: _MessagesUsage | None = None
    delta: _MessageDelta | None = None
    stop_reason: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_ANSWER = msgspec.json.Decoder(_Answer)
_MESSAGES_ANSWER = msgspec.json.Decoder(_MessagesAnswer)


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of itself."""

    usage: Usage | None = None
    finish: str | None = None
    """`finish_reason` of the first choice that has one."""
    has_error: bool = False
    """Whether the node sent an error event."""


_NOTHING = Findings()


class StreamWatch:
    """Follow one server-sent event stream.

    It holds back an unfinished event, which no client could use anyway: when the node is cut
    within one, the error event that follows is not glued to the debris.
    """

    def __init__(self, dialect: Dialect = Dialect.OPENAI) -> None:
        self._dialect = dialect
        self._marks = MESSAGES_MARKS if dialect is Dialect.ANTHROPIC else OPENAI_MARKS
        self.has_content = False
        """Whether a token came by."""
        self.is_done = False
        """Whether the terminator came by; nothing after it counts."""
        self._held = bytearray()
        self._first = b""
        """Events with `message_start`, which alone may have the size of the prompt."""
        self._last: collections.deque[bytes] = collections.deque(maxlen=_TAIL_CHUNKS)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and return those that go to the caller: whole events, or nothing.

        Raises:
            UpstreamFailure: one event is larger than `MAX_EVENT_BYTES`.
        """
        # The engine writes whole events, so a chunk nearly always ends with one.
        whole = chunk if not self._held and chunk.endswith(b"\n\n") else self._whole(chunk)
        if self._marks.done in whole:
            whole = self._up_to_terminator(whole)
        if whole:
            if not self._first and self._dialect is Dialect.ANTHROPIC and _START in whole:
                self._first = whole
            self._last.append(whole)
            if not self.has_content and self._marks.content.search(whole):
                self.has_content = True
        return whole

    def end(self) -> bytes:
        """Take the end of the stream and return what is still to be sent.

        A terminator without the blank line after it is completed; any other debris is dropped.
        """
        held = bytes(self._held).strip()
        self._held.clear()
        if not self.is_done and self._marks.terminator.fullmatch(held):
            self.is_done = True
            return held + b"\n\n"
        return b""

    def findings(self) -> Findings:
        """Return what the last events said."""
        found = Findings()
        # Read twice, events say the same again.
        for match in _DATA.finditer(self._first + b"".join(self._last)):
            one = findings_of(match[1], self._dialect)
            found = Findings(
                usage=_merged(found.usage, one.usage),
                finish=found.finish or one.finish,
                has_error=found.has_error or one.has_error,
            )
        return found

    def _whole(self, chunk: bytes) -> bytes:
        """Return the whole events so far and hold back the rest."""
        held = self._held
        start = max(0, len(held) - 3)
        held += chunk
        end = max(_end_of(held, blank, start) for blank in _BLANK_LINES)
        whole = bytes(held[:end])
        del held[:end]
        if len(held) > MAX_EVENT_BYTES:
            raise UpstreamFailure(
                Failure.CUT_MID_ANSWER, f"one event of over {MAX_EVENT_BYTES} bytes"
            )
        return whole

    def _up_to_terminator(self, whole: bytes) -> bytes:
        match = self._marks.terminator.search(whole)
        if match is None:
            return whole
        self.is_done = True
        self._held.clear()
        return whole[: match.end()].rstrip() + b"\n\n"


def findings_of(body: bytes, dialect: Dialect = Dialect.OPENAI) -> Findings:
    """Return what a whole answer or an event's data says of itself; nothing if unreadable."""
    return whole_findings(body, dialect) or _NOTHING


def whole_findings(body: bytes, dialect: Dialect) -> Findings | None:
    """Return what a whole answer says of itself; `None` when it is no whole JSON."""
    try:
        if dialect is Dialect.ANTHROPIC:
            return _messages_findings(_MESSAGES_ANSWER.decode(body))
        answer = _ANSWER.decode(body)
    except msgspec.ValidationError:
        # Of another shape, and read no further than that could be seen.
        return _NOTHING if is_json(body) else None
    except (msgspec.DecodeError, RecursionError):
        return None
    return Findings(usage=answer.usage, finish=_finish(answer), has_error=_is_error(answer.error))


def is_json(body: bytes) -> bool:
    """Whether `body` is one whole JSON value."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def is_only_comments(events: bytes) -> bool:
    """Whether whole events carry nothing but comments, as a node's own heartbeats do."""
    return events.startswith(b":") and not re.search(rb"[\r\n][^:\r\n]", events)


def _messages_findings(answer: _MessagesAnswer) -> Findings:
    usage, found = answer.usage, None
    if answer.message is not None:
        usage = answer.message.usage
    if usage is not None and usage.input_tokens is None:
        found = Usage(completion_tokens=usage.output_tokens)
    elif usage is not None and usage.input_tokens is not None:
        cached = usage.cache_read_input_tokens
        created = usage.cache_creation_input_tokens
        found = Usage(
            prompt_tokens=usage.input_tokens + (created or 0) + (cached or 0),
            completion_tokens=usage.output_tokens,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )
    finish = answer.stop_reason or (answer.delta.stop_reason if answer.delta else None)
    return Findings(usage=found, finish=finish, has_error=_is_error(answer.error))


def _merged(before: Usage | None, after: Usage | None) -> Usage | None:
    """Return the later usage, with what only the earlier one says."""
    if before is None or after is None:
        return after or before
    if after.prompt_tokens is not None:
        return after
    return msgspec.structs.replace(before, completion_tokens=after.completion_tokens)


def _is_error(error: msgspec.Raw) -> bool:
    return bytes(error) not in (b"", b"null")


def _finish(answer: _Answer) -> str | None:
    return next((c.finish_reason for c in answer.choices if c.finish_reason), None)


def _end_of(held: bytearray, blank: bytes, start: int) -> int:
    at = held.rfind(blank, start)
    return 0 if at < 0 else at + len(blank)
