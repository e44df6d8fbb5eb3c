"""JSON in and out, with msgspec's failures turned into errors for the caller."""

import codecs
import re
from typing import TypeVar

import msgspec

from cortex_core.errors import InvalidJsonError, InvalidRequestError

T = TypeVar("T")

encode_json = msgspec.json.Encoder().encode
"""Encode any supported value as compact JSON bytes."""

_PIECE_BYTES = 64 * 1024
"""So much text finds room in memory that is there already, and in the processor's cache."""

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def decode_request(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a caller's JSON body.

    Raises:
        InvalidJsonError: not JSON, not UTF-8, or nested too deeply.
        InvalidRequestError: JSON of another shape; `param` names the field.
    """
    try:
        # msgspec does not check the UTF-8 of fields that it skips or keeps raw.
        _check_utf8(body)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        raise InvalidRequestError(message, param=_param(message)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJsonError(f"the body is not valid JSON: {_one_line(error)}") from None
    except RecursionError:
        raise InvalidJsonError("the body is nested too deeply") from None


def _check_utf8(body: bytes) -> None:
    """Look for what is not UTF-8, without a text as long as the body.

    Raises:
        UnicodeDecodeError: there is some.
    """
    if body.isascii():
        return
    view, position = memoryview(body), 0
    while position < len(body):
        is_last = position + _PIECE_BYTES >= len(body)
        try:
            _, length = codecs.utf_8_decode(
                view[position : position + _PIECE_BYTES], "strict", is_last
            )
        except UnicodeDecodeError as error:
            start, end = position + error.start, position + error.end
            raise UnicodeDecodeError("utf-8", body, start, end, error.reason) from None
        position += length


def _param(message: str) -> str | None:
    path = _PATH.search(message)
    where = path["path"] if path else ""
    missing = _MISSING.search(message)
    if missing:
        return f"{where}.{missing['field']}" if where else missing["field"]
    return where or None


def _one_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error).splitlines()[0][:200]
