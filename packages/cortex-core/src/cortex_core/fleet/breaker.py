"""Passive ejection: a replica that keeps failing is left alone for a while.

The numbers follow Envoy's outlier detection (5 failures in a row, 30 s times the number of
ejections), with a cap of 300 s.
"""

import msgspec

FAILURES_TO_EJECT = 5
EJECTION_S = 30.0
MAX_EJECTION_S = 300.0


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Recent failures of one replica; one that never failed has none."""

    failures: int = 0
    """Failed requests in a row."""
    ejections: int = 0
    ejected_until: float = 0.0
    """Monotonic seconds; in the past when it is not ejected."""

    def is_open(self, now: float) -> bool:
        """Whether requests shall go elsewhere."""
        return now < self.ejected_until


def with_failure(breaker: Breaker | None, now: float) -> Breaker:
    """Return the breaker after one more failed request.

    Once an ejection has run out, the next failure ejects again: the count is kept until a
    request succeeds, so the first request after an ejection is the probe.
    """
    breaker = breaker or Breaker()
    failures = breaker.failures + 1
    if failures < FAILURES_TO_EJECT or breaker.is_open(now):
        return msgspec.structs.replace(breaker, failures=failures)
    ejections = breaker.ejections + 1
    return Breaker(
        failures=failures,
        ejections=ejections,
        ejected_until=now + min(EJECTION_S * ejections, MAX_EJECTION_S),
    )
