"""What callers saw, request by request, and what that comes to."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex_cli.bench.lag import Lag


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request, in seconds since it was due: a caller does not wait for the one before."""

    outcome: str
    """`ok`, `cut` (an answer without its end), `error` (an event that says so), `unreachable`,
    `timeout`, `not sent` (too many were open), or the status of an answer that is none."""
    sent_s: float
    """When it was sent; what is much above 0 is the fault of whoever measures."""
    first_byte_s: float | None = None
    """When the first byte of the body was there."""
    first_token_s: float | None = None
    """When the first piece of text was there, of a stream."""
    end_s: float
    """When it was over."""
    gaps_s: tuple[float, ...] = ()
    """Between two reads with events in them, of a stream."""
    events: int = 0
    """Events of a stream, its end not among them."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How measured seconds are spread."""

    count: int
    p50_s: float
    p99_s: float
    p999_s: float
    max_s: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a load came to."""

    offered_per_s: float
    """Requests per second, as they were due."""
    requests: int
    outcomes: Mapping[str, int]
    """How many ended how; see `Sample`."""
    late: Spread | None
    """How late requests were sent. Where this is large, all else tells of the measuring machine."""
    first_byte: Spread | None
    """Of requests that ended well, as all that follows; `None` when there are none."""
    first_token: Spread | None
    total: Spread | None
    gap: Spread | None
    events_per_s: float
    lag: Lag | None = None
    """Of the gateway's own event loop meanwhile; `None` where nobody says."""


def summarize(samples: Sequence[Sample], offered_per_s: float, wall_s: float) -> Summary:
    """Return what a load came to.

    Args:
        samples: n >= 0, in any order.
        offered_per_s: as it was meant.
        wall_s: from the first request that was due to the last end; above 0 when there are any.
    """
    fine = [sample for sample in samples if sample.outcome == "ok"]
    events = sum(sample.events for sample in fine)
    return Summary(
        offered_per_s=offered_per_s,
        requests=len(samples),
        outcomes=dict(sorted(Counter(sample.outcome for sample in samples).items())),
        late=spread(sample.sent_s for sample in samples),
        first_byte=spread(_known(sample.first_byte_s for sample in fine)),
        first_token=spread(_known(sample.first_token_s for sample in fine)),
        total=spread(sample.end_s for sample in fine),
        gap=spread(gap for sample in fine for gap in sample.gaps_s),
        events_per_s=events / wall_s if events else 0.0,
    )


def spread(values: Iterable[float]) -> Spread | None:
    """Return how values are spread, or `None` when there are none.

    A quantile is a value that was measured: the smallest that at least that share does not exceed.
    """
    ranked = sorted(values)
    if not ranked:
        return None
    return Spread(
        count=len(ranked),
        p50_s=_quantile(ranked, 0.5),
        p99_s=_quantile(ranked, 0.99),
        p999_s=_quantile(ranked, 0.999),
        max_s=ranked[-1],
    )


def _quantile(ranked: Sequence[float], share: float) -> float:
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def _known(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)
