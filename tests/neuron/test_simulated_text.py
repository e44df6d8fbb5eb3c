"""The simulated engine's pure parts: tokens, stop strings, values for schemas."""

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError
from neuron.engines.simulation.instance import smallest_instance
from neuron.engines.simulation.text import (
    count_tokens,
    cut_at_stop,
    decode_tokens,
    encode_token,
    tokens_of,
)


@given(st.text())
def test_tokens_are_the_text(text: str) -> None:
    """Ours: token ids lose nothing, and counting counts them."""
    if not _is_utf8(text):
        return
    tokens = tokens_of(text)

    assert "".join(tokens) == text
    assert all(1 <= len(token.encode()) <= 4 for token in tokens)
    assert decode_tokens([encode_token(token) for token in tokens]) == text
    assert count_tokens(text) == len(tokens)


@given(st.integers())
def test_number_that_is_no_token_is_refused(number: int) -> None:
    """Ours: any integer is a token of ours, or a 400."""
    try:
        text = decode_tokens([number])
    except InvalidRequestError:
        return

    assert encode_token(text) == number


@given(st.lists(st.text("ab ", min_size=1, max_size=4), max_size=8), st.text("ab ", max_size=3))
def test_text_before_the_stop_string_is_kept_whole(tokens: list[str], stop: str) -> None:
    """Ours: exactly what comes before the first stop string."""
    kept, found = cut_at_stop(tokens, [stop])

    text = "".join(tokens)
    assert found == (stop if stop and stop in text else None)
    assert "".join(kept) == (text.split(stop)[0] if found else text)


SCALARS = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda n: {"type": "string", "minLength": n}, st.integers(0, 5)),
    st.builds(lambda n: {"type": "integer", "minimum": n}, st.integers(-9, 9)),
    st.builds(lambda n: {"type": "integer", "maximum": n}, st.integers(-9, 9)),
    st.builds(lambda n: {"type": "integer", "exclusiveMinimum": n}, st.integers(-9, 9)),
    st.builds(lambda n: {"type": "number", "exclusiveMaximum": n}, st.integers(-9, 9)),
    st.builds(
        lambda n, m: {"type": "integer", "multipleOf": n, "minimum": m},
        st.integers(1, 9),
        st.integers(-20, 20),
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": [1]}, {"enum": ["x", 2]}]),
    st.just({"type": ["null", "string"]}),
    st.just(True),
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda items, n: {"type": "array", "items": items, "minItems": n},
            inner,
            st.integers(0, 3),
        ),
        st.builds(
            lambda properties, count: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[:count],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.integers(0, 3),
        ),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one: {"$defs": {"x": one}, "$ref": "#/$defs/x"}, SCALARS),
    ),
    max_leaves=8,
)


@given(SCHEMAS)
def test_made_up_value_is_valid_under_its_schema(schema: object) -> None:
    """JSON Schema 2020-12, for the keywords that tools use."""
    if "$ref" in str(schema) and not (isinstance(schema, dict) and "$ref" in schema):
        # A nested reference would have to point at its own root.
        return

    value = smallest_instance(schema)

    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        {"type": "nope"},
        {"$ref": "#/nope"},
        {"$ref": "#"},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "minItems": 10**9},
    ],
)
def test_schema_without_a_reasonable_value_is_refused(schema: object) -> None:
    """Ours: bounded, whatever a caller sends."""
    with pytest.raises(InvalidRequestError):
        smallest_instance(schema)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
