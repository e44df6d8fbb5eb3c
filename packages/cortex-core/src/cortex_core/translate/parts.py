"""The vocabulary between readers and writers: an answer as a sequence of parts.

A legal sequence is `Begin`, then any number of parts, then `End` or `Fail`. A part is `Open`,
any number of `Delta`, `Close`; one part is open at a time, and their indices count up from 0.
`Fail` may come anywhere, within a part as well and even first. Readers produce legal sequences
whatever an upstream sends, so that writers need not check.
"""

import enum
from collections.abc import Iterable
from typing import Protocol

import msgspec

from cortex_core.errors import RequestError
from cortex_core.wire.openai.chat import TokenLogprob


class PartKind(enum.Enum):
    """What a part holds."""

    REASONING = "reasoning"
    TEXT = "text"
    REFUSAL = "refusal"
    TOOL_CALL = "tool_call"
    """Its deltas are fragments of the arguments, which are a JSON object as text."""


class Finish(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """The model was done, or a stop sequence came."""
    LENGTH = "length"
    """The caller's limit of tokens was reached."""
    WINDOW = "window"
    """The model's context was full."""
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of an answer; `None` means that the upstream did not say."""

    prompt_tokens: int | None = None
    """All of the prompt, the cached part included."""
    cached_tokens: int | None = None
    """The part of the prompt that came from a cache."""
    completion_tokens: int | None = None
    """Everything that was generated, reasoning included."""
    reasoning_tokens: int | None = None


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """The upstream has begun to answer."""

    usage: Usage = Usage()
    """What is known so far: the prompt's size, if anything."""


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """A part begins."""

    index: int
    kind: PartKind
    call_id: str = ""
    """Of a tool call, never empty there."""
    name: str = ""
    """Of a tool call, complete and never empty there."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """More of the open part; never empty."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens of `text`, when they were asked for."""


class Close(msgspec.Struct, frozen=True, kw_only=True):
    """The open part is complete, or was cut off by the limit of tokens."""

    signature: str | None = None
    """An upstream's signature of reasoning, opaque; `None` when it has none."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is complete."""

    finish: Finish
    stop_sequence: str | None = None
    """The stop sequence that ended it."""
    usage: Usage = Usage()


class Fail(msgspec.Struct, frozen=True, kw_only=True):
    """The answer broke off."""

    error: RequestError


PartEvent = Begin | Open | Delta | Close | End | Fail


class Reader(Protocol):
    """Reads an upstream's answer: either a stream, by `feed` and `end`, or a `whole` body."""

    def feed(self, data: bytes) -> list[PartEvent]:
        """Take the next bytes of a stream, cut anywhere; returns what they complete.

        Nothing comes after `End` or `Fail`.
        """
        ...

    def end(self) -> list[PartEvent]:
        """Take the end of the stream; a stream without its terminator ends in `Fail`."""
        ...

    def whole(self, body: bytes) -> list[PartEvent]:
        """Read a successful answer that is no stream; unreadable ones are a lone `Fail`."""
        ...


class Writer(Protocol):
    """Writes an answer in a caller's dialect: either a stream, by `write`, or a `whole` body."""

    def write(self, events: Iterable[PartEvent]) -> bytes:
        """Return the stream's next bytes, whole events or nothing."""
        ...

    def whole(self, events: Iterable[PartEvent]) -> bytes:
        """Return the body of an answer that is no stream.

        Raises:
            RequestError: the sequence ends in `Fail`.
        """
        ...

    def fail(self, error: RequestError) -> bytes:
        """Return what ends a stream that broke, however far it has come; nothing at its end."""
        ...

    def keep_alive(self) -> bytes:
        """Return bytes that the dialect ignores and that may be sent between two events."""
        ...


class Translator:
    """A reader and a writer back to back: an upstream's bytes in, a caller's bytes out."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self.failure: RequestError | None = None
        """What the stream broke with, once the bytes that say so were returned."""
        self.has_thought = False
        """Whether the caller was shown a `thought`."""
        self._is_thinking = False

    def thought(self, text: str) -> bytes:
        """Show the caller `text` as reasoning, before the answer begins; may return nothing."""
        events: list[PartEvent] = [Delta(text=text)]
        if not self.has_thought:
            events = [Begin(), Open(index=0, kind=PartKind.REASONING), *events]
        self.has_thought = self._is_thinking = True
        return self._writer.write(events)

    def read_with(self, reader: Reader) -> None:
        """Read another upstream's answer; what the caller was shown so far stands."""
        self._reader = reader

    def feed(self, data: bytes) -> bytes:
        """Translate the next bytes of a stream; may return nothing."""
        return self._write(self._reader.feed(data))

    def end(self) -> bytes:
        """Translate the end of a stream."""
        return self._write(self._reader.end())

    def whole(self, body: bytes) -> bytes:
        """Translate a successful answer that is no stream.

        Raises:
            RequestError: the answer cannot be read, or says that it failed.
        """
        return self._writer.whole(self._reader.whole(body))

    def fail(self, error: RequestError) -> bytes:
        """Return what ends a stream that broke, in the caller's dialect."""
        return self._writer.fail(error)

    def keep_alive(self) -> bytes:
        """Return bytes that may be sent between two events of a stream."""
        return self._writer.keep_alive()

    def _write(self, events: list[PartEvent]) -> bytes:
        if events and isinstance(events[-1], Fail):
            self.failure = events[-1].error
        return self._writer.write(self._after_thoughts(events) if self.has_thought else events)

    def _after_thoughts(self, events: Iterable[PartEvent]) -> Iterable[PartEvent]:
        """Yield what makes one legal sequence with the thoughts that were shown."""
        for event in events:
            if isinstance(event, Begin):
                continue
            if self._is_thinking:
                self._is_thinking = False
                yield Close()
            if isinstance(event, Open):
                event = msgspec.structs.replace(event, index=event.index + 1)
            yield event
