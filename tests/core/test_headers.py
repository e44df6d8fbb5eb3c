"""Which headers cross the gateway."""

from hypothesis import given, strategies as st

from cortex_core.headers import (
    HOP_BY_HOP,
    REQUEST_ALLOWED,
    combined,
    request_headers,
    response_headers,
)

names = st.sampled_from(
    [*sorted(HOP_BY_HOP), "Content-Type", "X-Custom", "authorization", "Set-Cookie", "host"]
)
pairs = st.lists(st.tuples(names, st.sampled_from(["a", "close", "x-custom", "keep-alive"])))


@given(pairs)
def test_hop_by_hop_headers_never_cross(headers: list[tuple[str, str]]) -> None:
    """RFC 9110 section 7.6.1, including what `Connection` names."""
    named = {value for name, value in headers if name.lower() == "connection"}

    passed = {name for name, _ in response_headers(headers)}

    assert not passed & HOP_BY_HOP
    assert not passed & named


@given(pairs)
def test_only_listed_request_headers_reach_a_neuron(headers: list[tuple[str, str]]) -> None:
    """Ours: keys and cookies of callers stay at the gateway."""
    assert {name for name, _ in request_headers(headers)} <= REQUEST_ALLOWED


def test_what_connection_names_is_dropped_too() -> None:
    """RFC 9110 section 7.6.1."""
    headers = [("Connection", "close, X-Private"), ("x-private", "1"), ("x-public", "2")]

    assert response_headers(headers) == [("x-public", "2")]


def test_what_describes_the_body_is_kept_in_order() -> None:
    """Ours: a compressed upstream stays readable."""
    headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip"), ("Vary", "a")]

    assert response_headers(headers) == [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
        ("vary", "a"),
    ]


def test_what_tells_of_the_operators_account_stays_here() -> None:
    """Ours: callers of an upstream share its key and need not know whose it is."""
    headers = [
        ("Anthropic-Organization-Id", "o"),
        ("anthropic-ratelimit-requests-remaining", "3"),
        ("x-ratelimit-limit-tokens", "9"),
        ("openai-organization", "o"),
        ("retry-after", "7"),
    ]

    assert response_headers(headers) == [("retry-after", "7")]


def test_repeated_headers_are_one_list() -> None:
    """RFC 9110 section 5.2: SDKs may send `anthropic-beta` more than once."""
    headers = [("anthropic-beta", "a"), ("accept", "x"), ("anthropic-beta", "b,c")]

    assert combined(headers) == {"anthropic-beta": "a, b,c", "accept": "x"}
