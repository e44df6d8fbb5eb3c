"""Another value in a request body, with every other byte as the caller wrote it."""

import re

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidJsonError, InvalidRequestError
from cortex_gateway.ports import Body

MAX_MEMBERS = 1000
"""Bound on the work of the walk; no request of any dialect has a tenth of that."""

_COMPARED_BYTES = 64 * 1024
"""What is copied at once to be compared."""

_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]+")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY = msgspec.json.Decoder(str)


def whole(body: Body) -> bytes:
    """Return a body that may be in pieces as one."""
    return body if isinstance(body, bytes) else b"".join(body)


def with_model(body: bytes, model: str) -> Body:
    """Return `body` with `model` as the value of its top-level key `model`; see `with_member`."""
    return with_member(body, "model", encode_json(model))


def with_member(body: bytes, key: str, value: bytes) -> Body:
    """Return `body` with another value of a top-level key.

    Nested objects that have such a key, and strings that look like one, stay as they are. Where
    the key is there several times every occurrence is replaced, so that it does not matter which
    of them the next reader takes.

    Args:
        body: a JSON object that was decoded before, and has the key.
        key: what is given another value.
        value: as JSON.

    Raises:
        InvalidJsonError: the body is no JSON object after all.
        InvalidRequestError: it has more than `MAX_MEMBERS` members.
    """
    try:
        members = _MEMBERS.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidJsonError("the body is not a JSON object") from None
    spans = _spans(body, members, key)
    if spans is None:
        # An object or array under a key that comes again has no span to skip it by. Every
        # decoder drops the earlier one, so nothing is lost by leaving it out.
        members[key] = msgspec.Raw(value)
        return encode_json(members)
    pieces: list[bytes | memoryview] = []
    view, position = memoryview(body), 0
    for start, end in spans:
        pieces += (view[position:start], value)
        position = end
    return (*pieces, view[position:])


def _spans(
    body: bytes, members: dict[str, msgspec.Raw], wanted: str
) -> list[tuple[int, int]] | None:
    """Return where the values of a key are, in order; `None` when the walk loses its way."""
    spans: list[tuple[int, int]] = []
    position = _after(body, 0) + 1  # over the opening brace
    for _ in range(MAX_MEMBERS):
        key = _STRING.match(body, _after(body, position))
        if key is None:
            return spans
        name = _KEY.decode(key.group())
        start = _after(body, _after(body, key.end()) + 1)  # over the colon
        end = _end_of_value(body, start, members[name])
        if end is None:
            return None
        if name == wanted:
            spans.append((start, end))
        position = _after(body, end) + 1  # over the comma or the closing brace
    if _STRING.match(body, _after(body, position)):
        raise InvalidRequestError(f"the body has more than {MAX_MEMBERS} members")
    return spans


def _end_of_value(body: bytes, start: int, value: msgspec.Raw) -> int | None:
    first = body[start : start + 1]
    if first not in b"{[":
        match = (_STRING if first == b'"' else _SCALAR).match(body, start)
        return None if match is None else match.end()
    # No complete object or array is the beginning of another one, so what starts like the value
    # that the decoder found is as long as it.
    raw = memoryview(value)
    for offset in range(0, len(raw), _COMPARED_BYTES):
        if not body.startswith(bytes(raw[offset : offset + _COMPARED_BYTES]), start + offset):
            return None
    return start + len(raw)


def _after(body: bytes, position: int) -> int:
    match = _SPACE.match(body, position)
    return position if match is None else match.end()
