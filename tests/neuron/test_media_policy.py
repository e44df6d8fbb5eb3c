"""Which media are taken, and from where: every trick that is known must end at the door."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Route
from neuron.lifecycle.media import (
    Medium,
    check_data_uri,
    is_host_allowed,
    is_public,
    media_of,
    read_url,
)

ALLOWED = ("example.com", "*.cdn.example.org")


def medium(url: str, kind: str = "image") -> Medium:
    return Medium(where=("messages", 0, "content", 1, "image_url", "url"), kind=kind, url=url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/a.png", (True, "example.com", 443, "/a.png")),
        ("http://EXAMPLE.com:8080", (False, "example.com", 8080, "/")),
        ("HTTPS://a.b.cdn.example.org/x?y=1#z", (True, "a.b.cdn.example.org", 443, "/x?y=1")),
        ("https://example.com?a=1", (True, "example.com", 443, "/?a=1")),
    ],
)
def test_allowed_urls_are_read(url: str, expected: tuple[bool, str, int, str]) -> None:
    """RFC 3986: host names are without case; a fragment is not sent."""
    source = read_url(medium(url), ALLOWED)

    assert (source.is_tls, source.host, source.port, source.target) == expected


REFUSED = [
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com@127.0.0.1/",
    "http://user:pass@example.com/",
    "http://example.com:80@127.0.0.1/",
    "http://example.com%2f@127.0.0.1/",
    "http://example.com#@127.0.0.1/",
    "http://example.com./",
    "http:/example.com/",
    "http:///example.com/",
    "//example.com/",
    "example.com/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:/",
    "http://example.com/a b",
    "http://example.com/\r\nHost: inside",
    "http://example.com\n.evil/",
    " http://example.com/",
    "http://example.com\u3002evil/",
    "http://\u0435xample.com/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://127.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://localhost/",
    "http://evil.com/?x=example.com",
    "http://notexample.com/",
    "http://example.com.evil.com/",
    "http://cdn.example.org/",
    "file:///etc/passwd",
    "file://example.com/etc/passwd",
    "FILE:/etc/passwd",
    "ftp://example.com/",
    "gopher://example.com/",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "",
    "http://example.com/" + "a" * 9000,
]


@pytest.mark.parametrize("url", REFUSED)
def test_everything_else_is_refused_in_the_same_words(url: str) -> None:
    """Ours: the answer does not tell why, or it would tell what is inside."""
    with pytest.raises(InvalidRequestError) as caught:
        read_url(medium(url), ALLOWED)

    assert caught.value.message == "this image is not fetched here; send it as a data URI"
    assert caught.value.param == "messages.0.content.1.image_url.url"


@given(st.text(max_size=40), st.sampled_from(["http://", "https://", "", "file:"]))
def test_nothing_is_fetched_without_a_list(rest: str, scheme: str) -> None:
    """Ours: the default."""
    with pytest.raises(InvalidRequestError):
        read_url(medium(scheme + rest), ())


@given(st.text(alphabet="ab.:@\\/#?[]%\t\n\r 1", max_size=20))
def test_host_that_is_read_is_one_of_the_list(rest: str) -> None:
    """Ours: whatever stands around it."""
    for url in (f"http://example.com{rest}", f"http://{rest}example.com/", f"http://{rest}"):
        try:
            source = read_url(medium(url), ALLOWED)
        except InvalidRequestError:
            continue
        assert is_host_allowed(source.host, ALLOWED)
        assert source.target.startswith("/")
        assert source.target.isprintable()
        assert " " not in source.target


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:808:808:0:0:80ff:fffe",
        "2001:db8::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    """IANA's special-purpose registries, and what IPv6 wraps IPv4 in."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """As above; NAT64 is how hosts without IPv4 reach it."""
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_makes_it_no_more_public(address: ipaddress.IPv4Address) -> None:
    """Ours: every form ends at the same host."""
    number = int(address)
    for wrapped in (
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
    ):
        assert not is_public(wrapped) or is_public(address)


def test_media_are_found_wherever_an_engine_looks() -> None:
    """vLLM 0.32 reads parts with and without a type, with a string or an object, and with a uuid
    whatever the type says."""
    parts: list[Any] = [
        {"type": "text", "text": "hello"},
        {"type": "image_url", "image_url": {"url": "u0"}},
        {"image_url": "u1"},
        {"type": "text", "uuid": "x", "image_url": "u2"},
        {"type": "input_image", "image_url": "u3"},
        {"type": "audio_url", "audio_url": {"url": "u4"}},
        {"video_url": {"url": "u5", "detail": "low"}},
        {"type": "image_url", "image_url": None},
    ]
    body = {
        "messages": [{"role": "user", "content": parts}],
        "tools": [{"image_url": "not fetched"}],
        "documents": [{"content": [{"image_url": "u6"}]}],
    }

    assert [found.url for found in media_of(Route.CHAT_COMPLETIONS, body)] == [
        f"u{number}" for number in range(6)
    ]
    assert [found.url for found in media_of(Route.RERANK, body)][-1] == "u6"


json_values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image_url", "url", "content"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(json_values)
def test_places_of_media_are_where_their_urls_are(value: Any) -> None:
    """Ours: what is put there later replaces what was found."""
    body = {"messages": value}
    for found in media_of(Route.CHAT_COMPLETIONS, body):
        at: Any = body
        for step in found.where:
            at = at[step]
        assert at == found.url


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("data:,hello", "image"),
        ("data:text/plain;base64,AAAA", "image"),
        ("data:image/png,AAAA", "image"),
        ("data:audio/wav;base64,AAAA", "image"),
        ("data:image/png;base64," + "A" * 2000, "image"),
        ("data:video/jpeg;base64," + "A," * 300, "video"),
    ],
)
def test_data_that_cannot_be_a_medium_is_refused(url: str, kind: str) -> None:
    """Ours: of another type, not in base64, or too large."""
    with pytest.raises(InvalidRequestError):
        check_data_uri(medium(url, kind), 1000)


def test_data_of_its_kind_passes() -> None:
    """RFC 2397: parameters and case do not matter."""
    url = "data:image/PNG;charset=x;base64,AAAA"

    assert url[check_data_uri(medium(url), 1000) :] == "AAAA"
