"""Virtual time: a list of what is to happen, worked off in order."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """What is to happen, and what time it is; what falls together happens as it was noted."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self.events = 0
        """How much has happened."""
        self._heap: list[tuple[float, int, Action]] = []
        self._noted = 0

    def at(self, when: float, action: Action) -> None:
        """Note that `action` happens at `when`, or at once when that is past."""
        self._noted += 1
        heapq.heappush(self._heap, (max(when, self.now), self._noted, action))

    def run(self, until: float) -> bool:
        """Let everything happen up to `until`; whether nothing is left to happen."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action = heapq.heappop(heap)
            self.events += 1
            action()
        return not heap
