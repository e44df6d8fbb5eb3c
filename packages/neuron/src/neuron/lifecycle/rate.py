"""How quickly something goes on, from what it said of itself over the last seconds."""

from typing import Self

import msgspec

WINDOW_S = 10.0
"""Long enough to even out the chunks in which bytes come, short enough to follow the line."""


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """The last samples of a count that mostly grows."""

    samples: tuple[tuple[float, int], ...] = ()
    """Monotonic seconds and bytes, the latest last."""

    def with_sample(self, now: float, done_bytes: int) -> Self:
        """Return the meter with one more sample; a count that fell begins anew."""
        if self.samples and done_bytes < self.samples[-1][1]:
            return msgspec.structs.replace(self, samples=((now, done_bytes),))
        recent = [sample for sample in self.samples if sample[0] >= now - WINDOW_S]
        # The one before the window is its beginning, where samples are rare.
        older = self.samples[: len(self.samples) - len(recent)][-1:]
        return msgspec.structs.replace(self, samples=(*older, *recent, (now, done_bytes)))

    @property
    def bytes_per_s(self) -> float | None:
        """Over the window; `None` until there are two samples at different times."""
        if len(self.samples) < 2:
            return None
        (began, first), (ended, last) = self.samples[0], self.samples[-1]
        return (last - first) / (ended - began) if ended > began else None
