"""What an operator's request asks for: its body, its query, or both."""

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError

T = TypeVar("T")

_FIELDS = msgspec.json.Decoder(dict[str, object])


async def asked(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the fields of the body, with those of the query.

    Args:
        request: its body may be empty.
        decoder: of a struct that forbids unknown fields, not strict: a query is all text.

    Raises:
        InvalidRequestError: a field is unknown or wrong, or body and query differ.
    """
    body = await request.body()
    fields = decode_request(body, _FIELDS) if body.strip() else {}
    for name, text in request.query_params.items():
        if name in fields and str(fields[name]).lower() != text.lower():
            raise InvalidRequestError(
                f"{name} is another in the body than in the query", param=name
            )
        fields.setdefault(name, text)
    return decode_request(encode_json(fields), decoder)


def answer(value: object, status: int = 200) -> Response:
    """Return `value` as JSON."""
    return Response(encode_json(value), status_code=status, media_type="application/json")
