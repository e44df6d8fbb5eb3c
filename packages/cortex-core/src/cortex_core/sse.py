"""Server-sent events without IO: a decoder that is safe for any split of bytes, an encoder.

Source: WHATWG HTML standard, section 9.2 "Server-sent events". `id` and `retry` fields are
read over: no dialect that cortex speaks uses them.
"""

import re

import msgspec

from cortex_core.errors import UpstreamCutError

MAX_EVENT_BYTES = 8 << 20
"""Bound on one event; tool arguments and images come as one, but never this large."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


class SseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One dispatched event."""

    data: str
    """The `data:` lines joined by newlines."""
    event: str = "message"
    """The `event:` field."""
    id: str | None = None
    """The `id:` field of this event; `None` when it had none."""


class SseDecoder:
    """Turn bytes into events, however the bytes are cut.

    Comments and events without data are skipped, as the standard says. The decoder holds at
    most one unfinished event.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._size = 0
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None
        self._at_start = True

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they complete, in order.

        Raises:
            UpstreamCutError: one event is larger than `MAX_EVENT_BYTES`.
        """
        self._buffer += chunk
        if self._at_start:
            if len(self._buffer) < 3 and b"\xef\xbb\xbf".startswith(self._buffer):
                return []
            self._buffer = self._buffer.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        events: list[SseEvent] = []
        for line in self._lines():
            self._line(line, events)
        if len(self._buffer) + self._size > MAX_EVENT_BYTES:
            raise UpstreamCutError(f"an event of the stream is over {MAX_EVENT_BYTES} bytes")
        return events

    def _lines(self) -> list[bytes]:
        """Take the complete lines out of the buffer."""
        if b"\r" not in self._buffer:
            # What nearly every server sends, and several times faster.
            *lines, self._buffer = self._buffer.split(b"\n")
            return lines
        lines, position = [], 0
        for match in _LINE_END.finditer(self._buffer):
            # A CR at the very end may be the first half of a CRLF.
            if match.group() == b"\r" and match.end() == len(self._buffer):
                break
            lines.append(self._buffer[position : match.start()])
            position = match.end()
        self._buffer = self._buffer[position:]
        return lines

    def _line(self, line: bytes, events: list[SseEvent]) -> None:
        if not line:
            if self._data:
                events.append(
                    SseEvent(
                        data="\n".join(self._data), event=self._event or "message", id=self._id
                    )
                )
            self._data, self._event, self._id, self._size = [], "", None, 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value)
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            self._id = value.decode("utf-8", "replace")


def encode_event(data: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """Return one event whose data is `data`, which must not contain a line break."""
    head = b""
    if event is not None:
        head += b"event: " + event.encode() + b"\n"
    if event_id is not None:
        head += b"id: " + event_id.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def encode_comment(text: str) -> bytes:
    """Return a comment, which every client skips; line breaks become spaces."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""The end of a complete OpenAI stream."""
