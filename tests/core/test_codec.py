"""Callers' JSON: what is refused, and how it is said."""

import contextlib

import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import decode_request
from cortex_core.errors import InvalidJsonError, InvalidRequestError
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER

_MEANT = bytes(range(0x20)) + b'"\\'
"""What means something within a JSON text."""


def test_a_missing_field_is_named_as_param() -> None:
    """OpenAI's: `param` names the field."""
    with pytest.raises(InvalidRequestError) as caught:
        decode_request(b'{"messages": []}', ENVELOPE_DECODER)

    assert caught.value.param == "model"
    assert caught.value.code is None


def test_a_nested_field_of_a_wrong_type_is_named_by_its_path() -> None:
    """Ours."""
    body = b'{"model": "m", "stream_options": {"include_usage": "yes"}}'

    with pytest.raises(InvalidRequestError) as caught:
        decode_request(body, ENVELOPE_DECODER)

    assert caught.value.param == "stream_options.include_usage"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"model": "m"',
        b'{"model": "m", "x": "\xff"}',
        b'{"model": "m", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'\xef\xbb\xbf{"model": "m"}',
        b'{"model": "m", "x": NaN}',
    ],
)
def test_what_is_not_json_is_invalid_json(body: bytes) -> None:
    """Ours: one code for every unreadable body, whatever part of it is skipped."""
    with pytest.raises(InvalidJsonError) as caught:
        decode_request(body, ENVELOPE_DECODER)

    assert caught.value.code == "invalid_json"


@given(
    st.sampled_from([0, 65_536, 131_072]),
    st.integers(0, 6),
    st.text(max_size=4).map(str.encode) | st.binary(max_size=6),
    st.sampled_from(["", "é", "\U0001f600"]),
)
def test_text_is_checked_as_python_checks_it(edge: int, short: int, odd: bytes, wide: str) -> None:
    """Ours: a body is looked at in pieces, at whose edges nothing is let through or refused."""
    begin = b'{"model":"m","x":"' + wide.encode()
    body = begin + b"a" * max(0, edge - short - len(begin)) + odd.translate(None, _MEANT) + b'"}'
    try:
        body.decode()
        wrong = None
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is not UTF-8"

    try:
        decode_request(body, ENVELOPE_DECODER)
        said = None
    except InvalidJsonError as error:
        said = error.message.partition(": ")[2]

    assert said == wrong


@given(st.binary(max_size=200))
def test_no_body_raises_anything_but_a_request_error(body: bytes) -> None:
    """Ours: fuzzed bodies never become a 500."""
    with contextlib.suppress(InvalidRequestError):
        assert decode_request(body, ENVELOPE_DECODER).model is not None
