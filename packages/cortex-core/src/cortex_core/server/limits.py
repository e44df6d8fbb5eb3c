"""How much, and how slowly, a caller may send and read."""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard allows; the defaults are for callers from anywhere."""

    max_headers: int = 100
    max_header_bytes: int = 32 * 1024
    """Names and values together."""
    allowed_hosts: frozenset[str] | None = None
    """Names, in lower case and without port, that `Host` may have; `None` allows all."""
    max_body_bytes: int = 64 * 1024 * 1024
    body_timeout_s: float = 30.0
    """For the whole body."""
    body_grace_s: float = 5.0
    """How long a body may come as slowly as it likes."""
    min_body_bytes_per_s: float = 16 * 1024
    """From then on."""
    write_stall_s: float = 30.0
    """For the caller to take one piece of the answer, at most 256 KiB."""
    discard_bytes: int = 1024 * 1024
    """Of a body that nobody wants, read so that the caller gets to the answer."""
    discard_s: float = 2.0
