"""How much of every load there is: enough to tell, and little enough to wait for."""

import msgspec


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured in one round."""

    turns: int = 6
    """Of the node and the gateway."""
    calls: tuple[int, ...] = (75, 30, 8, 2)
    """One at a time, in each turn, of each size of body."""
    rate_per_s: float = 400.0
    due_calls: int = 170
    """At that rate, in each turn; of fewer than a thousand together p99.9 is the slowest one."""
    stream_rate_per_s: float = 250.0
    due_streams: int = 170
    """At that rate, in each turn; 16 chunks each."""
    crowd_calls: int = 60
    """Of each of 32 callers, in each turn."""
    wide_calls: int = 10
    """Of each of 256 callers, in each turn; 0 leaves it out."""
    bound_s: float = 1.0
    """Seconds at each rate while the highest is looked for that is answered in time."""
    long_chunks: int = 1024
    """Of each of 64 streams, 5 ms apart."""
    many: tuple[int, ...] = (1, 100, 1000)
    """Streams that are open at once."""
    many_s: float = 1.5
    """How long all of those are open together."""
    most: int = 5000
    """Likewise, of those that take so many; 0 leaves it out."""
    most_s: float = 6.0
    """How long all of those are open together."""
    chunks_per_s: float = 10_000.0
    """Of all open streams together, though none has its chunks less than 5 ms apart."""
    cuts: int = 400
    """Streams that are cut by their callers."""
    cuts_per_s: float = 200.0


QUICK = Sizes(
    turns=2,
    calls=(10, 3, 1, 1),
    due_calls=20,
    due_streams=3,
    crowd_calls=3,
    wide_calls=1,
    bound_s=0.1,
    long_chunks=20,
    many=(1, 10),
    most=50,
    many_s=0.3,
    most_s=0.3,
    cuts=20,
)
"""Little of everything, to see that it works."""

SLOW = Sizes(
    turns=3,
    calls=(15, 8, 2, 1),
    rate_per_s=25.0,
    due_calls=30,
    stream_rate_per_s=4.0,
    due_streams=4,
    crowd_calls=10,
    wide_calls=0,
    long_chunks=64,
    many=(1, 100),
    most=0,
    chunks_per_s=500.0,
    cuts=40,
    cuts_per_s=20.0,
)
"""For gateways that would take minutes for the rest, or give it up."""
