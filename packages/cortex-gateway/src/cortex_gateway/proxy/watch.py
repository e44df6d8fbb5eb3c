"""What a stream tells while it passes: whole events, the first content, the terminator, usage.

A chunk costs a few byte searches. JSON is decoded once, at the end, of the last few chunks only.
"""

import collections
import re

import msgspec

from cortex_core.routing.retry import Failure
from cortex_core.sse import MAX_EVENT_BYTES
from cortex_gateway.ports import UpstreamFailure

_TAIL_CHUNKS = 4
"""Finish, usage and terminator come in the last events, so at most in that many chunks."""

_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\n\r", b"\r\r")
_DONE_LINE = re.compile(rb"(?:^|(?<=[\r\n]))data: ?\[DONE\](?:\r\n|\n|\r|$)")
# Any delta but an empty one: text, reasoning, a refusal, a tool call, or a completion's text.
_CONTENT = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|refusal|arguments)"\s*:\s*"[^"]'
    rb'|"tool_calls"\s*:\s*\[\s*\{'
)
_DATA = re.compile(rb"(?:^|(?<=[\r\n]))data: ?(\{[^\r\n]*)")


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


_ANSWER = msgspec.json.Decoder(_Answer)


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of itself."""

    usage: Usage | None = None
    finish: str | None = None
    """`finish_reason` of the first choice that has one."""
    has_error: bool = False
    """Whether the node sent an error event."""


class StreamWatch:
    """Follow one server-sent event stream of the OpenAI dialect.

    It holds back an unfinished event, which no client could use anyway: when the node is cut
    within one, the error event that follows is not glued to the debris.
    """

    def __init__(self) -> None:
        self.has_content = False
        """Whether a token came by."""
        self.is_done = False
        """Whether the terminator came by; nothing after it counts."""
        self._held = bytearray()
        self._last: collections.deque[bytes] = collections.deque(maxlen=_TAIL_CHUNKS)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and return those that go to the caller: whole events, or nothing.

        Raises:
            UpstreamFailure: one event is larger than `MAX_EVENT_BYTES`.
        """
        # The engine writes whole events, so a chunk nearly always ends with one.
        whole = chunk if not self._held and chunk.endswith(b"\n\n") else self._whole(chunk)
        if b"[DONE]" in whole:
            whole = self._up_to_terminator(whole)
        if whole:
            self._last.append(whole)
            if not self.has_content and _CONTENT.search(whole):
                self.has_content = True
        return whole

    def end(self) -> bytes:
        """Take the end of the stream and return what is still to be sent.

        A terminator without the blank line after it is completed; any other debris is dropped.
        """
        held = bytes(self._held).strip()
        self._held.clear()
        if not self.is_done and _DONE_LINE.fullmatch(held):
            self.is_done = True
            return held + b"\n\n"
        return b""

    def findings(self) -> Findings:
        """Return what the last events said."""
        usage, finish, has_error = None, None, False
        for match in _DATA.finditer(b"".join(self._last)):
            try:
                answer = _ANSWER.decode(match[1])
            except msgspec.DecodeError:
                continue
            usage = answer.usage or usage
            finish = finish or _finish(answer)
            has_error = has_error or bytes(answer.error) not in (b"", b"null")
        return Findings(usage=usage, finish=finish, has_error=has_error)

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
        match = _DONE_LINE.search(whole)
        if match is None:
            return whole
        self.is_done = True
        self._held.clear()
        return whole[: match.start()] + b"data: [DONE]\n\n"


def findings_of(body: bytes) -> Findings:
    """Return what a whole JSON answer says of itself; nothing when it cannot be read."""
    try:
        answer = _ANSWER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return Findings()
    return Findings(usage=answer.usage, finish=_finish(answer))


def is_only_comments(events: bytes) -> bool:
    """Whether whole events carry nothing but comments, as a node's own heartbeats do."""
    return events.startswith(b":") and not re.search(rb"[\r\n][^:\r\n]", events)


def _finish(answer: _Answer) -> str | None:
    return next((c.finish_reason for c in answer.choices if c.finish_reason), None)


def _end_of(held: bytearray, blank: bytes, start: int) -> int:
    at = held.rfind(blank, start)
    return 0 if at < 0 else at + len(blank)
