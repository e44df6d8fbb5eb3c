"""Whether an engine that has work gets on with it."""

from typing import Self

import msgspec

from cortex_core.harness import EngineLoad


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """For how long an engine with unfinished requests has made no step, as far as was seen.

    The time between two looks counts for two intervals at most: a daemon that was stopped itself,
    or busy, has not heard yet what its engines did meanwhile.
    """

    steps: int | None = None
    """At the last look; `None` before the first, and of an engine that does not tell."""
    age_s: float | None = None
    """`None` while there is nothing to do."""
    looked_at: float = 0.0
    """Monotonic seconds."""

    def after(self, load: EngineLoad, now: float, interval_s: float) -> Self:
        """Return what another look shows.

        Args:
            load: the engine's now.
            now: monotonic seconds.
            interval_s: from look to look, as it is meant to be.
        """
        age_s: float | None = None
        if load.unfinished and load.steps is not None:
            passed_s = min(now - self.looked_at, 2 * interval_s)
            is_stuck = self.age_s is not None and load.steps == self.steps
            age_s = self.age_s + passed_s if self.age_s is not None and is_stuck else 0.0
        return type(self)(steps=load.steps, age_s=age_s, looked_at=now)

    def is_hung(self, bound_s: float) -> bool:
        """Return whether the engine is to be given up; a bound of 0 never does that."""
        return 0 < bound_s <= (self.age_s or 0.0)
