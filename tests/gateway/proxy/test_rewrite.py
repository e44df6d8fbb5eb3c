"""The alias's name in a body: only the top-level `model` changes."""

import json

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import decode_request
from cortex_core.errors import InvalidRequestError
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER
from cortex_gateway.proxy import rewrite
from cortex_gateway.proxy.rewrite import MAX_MEMBERS, whole

keys = st.text(max_size=5) | st.sampled_from(["model", "messages", '"', "\\"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(['"model":"alias"', '{"model":"alias"}', "\\", '\\"', "}", "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def with_model(body: bytes, model: str) -> bytes:
    return whole(rewrite.with_model(body, model))


layouts = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " :\r\n ")])


@given(st.dictionaries(keys, values, max_size=6), st.text(), st.booleans(), layouts)
def test_only_the_model_differs_for_every_decoder(
    members: dict[str, object], name: str, is_ascii: bool, layout: tuple[str, str]
) -> None:
    """Ours: with another parser than our own, nothing but the model is another."""
    members = {**members, "model": "alias"}
    body = json.dumps(members, ensure_ascii=is_ascii, separators=layout)
    body_bytes = body.encode("utf-8", "surrogatepass")

    rewritten = with_model(body_bytes, name)

    assert json.loads(rewritten) == {**members, "model": json.loads(msgspec.json.encode(name))}


def test_every_other_byte_stays_as_it_was_written() -> None:
    """Ours: layout, escapes and number forms are the caller's."""
    body = b' {"t": 1.0e0,\n "messages":[{"model":"a","x":"\\u00e9 \\"model\\":\\"a\\""}] , "model" : "a" } '

    rewritten = with_model(body, "Org/Model")

    assert rewritten == body.replace(b'"model" : "a"', b'"model" : "Org/Model"')


def test_an_escaped_key_is_found() -> None:
    """RFC 8259 section 7: an escaped character is the character."""
    assert with_model(b'{"mod\\u0065l":"a"}', "b") == b'{"mod\\u0065l":"b"}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"x","model":"a"}',
        b'{"model":"a","n":1,"n":2}',
        b'{"model":"a","x":[1,[2]],"x":[1]}',
        b'{"x":{"y":1},"model":"a","x":{"y":2},"model":"a"}',
    ],
)
def test_a_key_that_comes_again_hides_nothing(body: bytes) -> None:
    """Ours: whichever occurrence the next reader takes, it reads the new model."""
    rewritten = with_model(body, "b")

    pairs = json.loads(rewritten, object_pairs_hook=list)
    assert {value for key, value in pairs if key == "model"} == {"b"}
    assert {**json.loads(body), "model": "b"} == json.loads(rewritten)


def test_too_many_members_are_refused() -> None:
    """Ours: the walk is bounded, so a flood of members cannot hold the event loop."""
    body = b'{"model":"a"' + b',"x":1' * MAX_MEMBERS + b"}"

    with pytest.raises(InvalidRequestError, match="members"):
        with_model(body, "b")


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\ model1', max_size=40).map(str.encode))
def test_whatever_the_envelope_takes_can_be_rewritten(body: bytes) -> None:
    """Ours: no body that passed the envelope makes the rewrite fail otherwise."""
    try:
        decode_request(body, ENVELOPE_DECODER)
    except InvalidRequestError:
        return

    assert json.loads(with_model(body, "b"))["model"] == "b"
