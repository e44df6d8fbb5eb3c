"""How often a model is asked for, as a number that fades."""

import math

import msgspec

MEMORY_S = 600.0
"""After this time a request counts for a third."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for one model."""

    count: float
    """Faded number of requests as of `at`."""
    at: float
    """Monotonic seconds."""


def counted(rate: Rate | None, now: float) -> Rate:
    """Return the rate after one more request; `None` is no request so far."""
    before = 0.0 if rate is None else _faded(rate, now)
    return Rate(count=before + 1.0, at=now)


def per_second(rate: Rate, now: float) -> float:
    """Return requests per second as they look now."""
    return _faded(rate, now) / MEMORY_S


def _faded(rate: Rate, now: float) -> float:
    return rate.count * math.exp((rate.at - now) / MEMORY_S)
