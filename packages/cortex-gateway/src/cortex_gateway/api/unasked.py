"""Tokens of streams whose callers do not ask for them: asked of the engine, and hidden again."""

import re

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidJsonError
from cortex_gateway.ports import Body
from cortex_gateway.proxy.rewrite import whole, with_member

_KEY = "stream_options"
_BEGIN = re.compile(rb"[ \t\n\r]*\{")
_ASKING = b'"stream_options":{"include_usage":true},'

# In JSON a quote within a string has a backslash before it, so text cannot look like this.
_USAGE = b'"usage"'
_EVENT = re.compile(rb"(?:[^\r\n]++(?:\r\n|\n|\r))*+(?:\r\n|\n|\r)")
_DATA = re.compile(rb"(?:^|(?<=[\r\n]))data: ?(\{[^\r\n]*)")


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    stream_options: dict[str, msgspec.Raw] | None


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    choices: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = msgspec.Raw()


_OPTIONS = msgspec.json.Decoder(_Options)
_CHUNK = msgspec.json.Decoder(_Chunk)


def with_usage_asked(body: Body, *, has_options: bool) -> Body:
    """Return a request for a stream that asks for its usage, every other byte as it was.

    Args:
        body: a JSON object that was decoded before.
        has_options: whether it has `stream_options`, which then do not ask for usage.
    """
    if not has_options:
        first, *others = (body,) if isinstance(body, bytes) else body
        begin = _BEGIN.match(first)
        if begin is None:
            raise InvalidJsonError("the body is not a JSON object")
        return (begin[0], _ASKING, memoryview(first)[begin.end() :], *others)
    body = whole(body)
    asking = {
        **(_OPTIONS.decode(body).stream_options or {}),
        "include_usage": msgspec.Raw(b"true"),
    }
    # Without `include_usage` it had no meaning, and with it there would be usage in every chunk.
    asking.pop("continuous_usage_stats", None)
    return with_member(body, _KEY, encode_json(asking))


class UsageHider:
    """Leaves the event with nothing but usage out of a stream of whole events.

    An engine that tells usage to everybody, which is seen by its telling it beside choices too, is
    meant to: then nothing is left out.
    """

    def __init__(self) -> None:
        self._is_for_all = False

    def feed(self, events: bytes) -> bytes:
        """Return what of whole events the caller is to see."""
        if _USAGE not in events or self._is_for_all:
            return events
        kept: list[bytes] = []
        position = 0
        for match in _EVENT.finditer(events):
            position = match.end()
            if not self._is_hidden(match[0]):
                kept.append(match[0])
        return b"".join((*kept, events[position:]))

    def _is_hidden(self, event: bytes) -> bool:
        found = _DATA.findall(event) if _USAGE in event and not self._is_for_all else ()
        if len(found) != 1:
            return False
        try:
            chunk = _CHUNK.decode(found[0])
        except (msgspec.DecodeError, RecursionError):
            return False
        if bytes(chunk.usage)[:1] != b"{" or chunk.choices is None:
            return False
        self._is_for_all = bool(chunk.choices)
        return not chunk.choices
