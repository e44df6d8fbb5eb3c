r"""Which media a request may bring along, and from where they may be fetched.

A URL is read once, by the one parser here, and what it was read as is what is connected to: two
parsers that disagree are how `http://allowed\@inside` got through elsewhere (CVE-2026-24779).
Special addresses: the IANA registries behind `ipaddress.is_global`; NAT64 is RFC 6052, 6to4 is
RFC 3056, Teredo is RFC 4380.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Route

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL_FIELDS = {"image_url": "image", "audio_url": "audio", "video_url": "video"}
"""Fields of content parts that hold a URL, or an object with one, and its kind."""

_PROMPT_FIELDS = ("messages", "input", "prompt")
_SCORED_FIELDS = (
    "query",
    "queries",
    "documents",
    "items",
    "data_1",
    "data_2",
    "text_1",
    "text_2",
)

_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-\[\]-~]*)?",
    re.IGNORECASE,
)
"""No user, no backslash, no blanks, nothing beyond ASCII: what is left is read the same by all."""

_DATA = re.compile(r"data:(?P<type>[a-z0-9.+/-]+)(?:;[a-z0-9=.+-]+)*;base64,", re.IGNORECASE)

_MAX_URL_CHARS = 8 << 10
_MAX_FRAMES = 256
"""Pictures in one `video/jpeg` URI, which are parted by commas (CVE-2026-34755)."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""What is given out of IPv6 (RFC 4291); the rest is special or not used."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """One URL in a request."""

    where: tuple[str | int, ...]
    """Path to the string in the body."""
    kind: str
    """`image`, `audio` or `video`."""
    url: str

    @property
    def param(self) -> str:
        """The path as errors name it."""
        return ".".join(map(str, self.where))


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a URL points, as it is asked there."""

    is_tls: bool
    host: str
    """In lower case; an IPv6 address without its brackets."""
    port: int
    target: str
    """Path and query."""


def media_of(route: Route, body: Mapping[str, object]) -> Iterator[Medium]:
    """Yield every URL in a request that an engine would fetch or unpack, in order.

    Args:
        route: where it was asked.
        body: the request's JSON, of whatever shape.
    """
    scored = _SCORED_FIELDS if route in (Route.SCORE, Route.RERANK) else ()
    for field in (*_PROMPT_FIELDS, *scored):
        yield from _found(body.get(field), (field,))


def read_url(medium: Medium, allowed_hosts: Sequence[str]) -> Source:
    """Return where a URL points, if it may be fetched from there.

    Args:
        medium: what has the URL.
        allowed_hosts: names that may be asked; `*.example.com` is every name below it.

    Raises:
        InvalidRequestError: it may not; no more is said than that.
    """
    found = _URL.fullmatch(medium.url) if len(medium.url) <= _MAX_URL_CHARS else None
    if found is None:
        raise _not_fetched(medium)
    host = found["host"].lower().strip("[]")
    port = int(found["port"] or (443 if found["scheme"].lower() == "https" else 80))
    if not 0 < port < 1 << 16 or not is_host_allowed(host, allowed_hosts):
        raise _not_fetched(medium)
    target = found["target"] or "/"
    return Source(
        is_tls=found["scheme"].lower() == "https",
        host=host,
        port=port,
        target=target.partition("#")[0] if target.startswith("/") else f"/{target}",
    )


def is_host_allowed(host: str, allowed_hosts: Sequence[str]) -> bool:
    """Whether a host is in the list; an empty list allows none."""
    for allowed in allowed_hosts:
        name = allowed.lower()
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_private and not address.is_multicast


def check_data_uri(medium: Medium, max_bytes: int) -> int:
    """Check a URI that brings its data along.

    Args:
        medium: what has the URI.
        max_bytes: most that it may hold.

    Returns:
        Where its base64 begins.

    Raises:
        InvalidRequestError: it is of another kind, or too large.
    """
    found = _DATA.match(medium.url)
    if found is None or not found["type"].lower().startswith(f"{medium.kind}/"):
        raise InvalidRequestError(
            f"this is no data URI of type {medium.kind}/... in base64", param=medium.param
        )
    size = (len(medium.url) - found.end()) * 3 // 4
    if size > max_bytes:
        raise InvalidRequestError(
            f"the {medium.kind} has {size} bytes; {max_bytes} may be sent", param=medium.param
        )
    if medium.url.count(",", found.end()) >= _MAX_FRAMES:
        raise InvalidRequestError(
            f"a video may have {_MAX_FRAMES} frames at most", param=medium.param
        )
    return found.end()


def _found(value: object, where: tuple[str | int, ...]) -> Iterator[Medium]:
    """Yield the URLs below a value; its depth is that of JSON, which was bounded when read."""
    pending: list[tuple[object, tuple[str | int, ...]]] = [(value, where)]
    while pending:
        value, where = pending.pop()
        if isinstance(value, list):
            pending.extend((inner, (*where, place)) for place, inner in _reversed(value))
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                kind = _URL_FIELDS.get(name)
                if kind is None:
                    pending.append((inner, (*where, name)))
                elif isinstance(inner, str):
                    yield Medium(where=(*where, name), kind=kind, url=inner)
                elif isinstance(inner, Mapping) and isinstance(url := inner.get("url"), str):
                    yield Medium(where=(*where, name, "url"), kind=kind, url=url)


def _reversed(values: list[object]) -> Iterator[tuple[int, object]]:
    # The last one put on the stack is looked at first.
    return ((place, values[place]) for place in range(len(values) - 1, -1, -1))


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to `address` end up at."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _not_fetched(medium: Medium) -> InvalidRequestError:
    return InvalidRequestError(
        f"this {medium.kind} is not fetched here; send it as a data URI", param=medium.param
    )
