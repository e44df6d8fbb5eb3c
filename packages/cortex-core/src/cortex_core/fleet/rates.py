"""How often a model is asked for, as a number that fades."""

import math

import msgspec

MEMORY_S = 600.0
"""After this time a request counts for a third, unless another time is given."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for one model."""

    count: float
    """Faded number of requests as of `at`."""
    at: float
    """Monotonic seconds."""


def counted(
    rate: Rate | None, now: float, *, requests: int = 1, memory_s: float = MEMORY_S
) -> Rate:
    """Return the rate after so many requests more; `None` is no request so far."""
    before = 0.0 if rate is None else _faded(rate, now, memory_s)
    return Rate(count=before + requests, at=now)


def per_second(rate: Rate, now: float, *, memory_s: float = MEMORY_S) -> float:
    """Return requests per second as they look now."""
    return _faded(rate, now, memory_s) / memory_s


def _faded(rate: Rate, now: float, memory_s: float) -> float:
    return rate.count * math.exp((rate.at - now) / memory_s)
