"""JSON in and out, with msgspec's failures turned into errors for the caller."""

import re
from typing import TypeVar

import msgspec

from cortex_core.errors import InvalidJsonError, InvalidRequestError

T = TypeVar("T")

encode_json = msgspec.json.Encoder().encode
"""Encode any supported value as compact JSON bytes."""

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
        body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        raise InvalidRequestError(message, param=_param(message)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJsonError(f"the body is not valid JSON: {_one_line(error)}") from None
    except RecursionError:
        raise InvalidJsonError("the body is nested too deeply") from None


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
