"""What became of each request of a simulation, and what the gateway did for it."""

from array import array
from collections import Counter

import msgspec

from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.simulation.trace import Arrival


class Pending(msgspec.Struct, kw_only=True, eq=False):
    """One request from its arrival to its end."""

    number: int
    """Its place in the trace."""
    arrival: Arrival
    is_cold: bool = False
    """Whether it waited for a load or a wake."""
    attempts: int = 0
    """Attempts that failed."""
    tried: frozenset[ReplicaId] = frozenset()
    """Where it failed."""
    sent_at: float = 0.0
    waited_s: float = 0.0
    """From its arrival to its latest dispatch."""


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """One command that the gateway gave."""

    at: float
    kind: str
    """`load`, `evict`, `retire`, `sleep` or `wake`."""
    model: ModelId
    """For whom, where it is an eviction; else which."""
    node: NodeName
    victims: tuple[ModelId, ...] = ()


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """How long one request waited."""

    at: float
    """When it arrived."""
    wait_s: float
    """Until it went to a node, or was refused."""
    caller: str
    is_refused: bool


class Journal:
    """Collects what happens.

    Args:
        requests: how many arrive.
    """

    def __init__(self, requests: int) -> None:
        self.deeds: list[Deed] = []
        self.refusals: Counter[str] = Counter()
        """By the code of the error."""
        self.hits = 0
        """Requests that were served and had no load or wake to wait for."""
        self.ttft_s = array("d")
        """Of those that were served."""
        self.waits: list[Wait] = []
        """Of each request, served or not, as they ended."""
        self.ended_at = 0.0
        """When the last request ended."""
        self._endings = bytearray(requests)

    @property
    def served(self) -> int:
        """Requests that were answered."""
        return len(self.ttft_s)

    @property
    def lost(self) -> int:
        """Requests that never ended."""
        return self._endings.count(0)

    @property
    def repeated(self) -> int:
        """Requests that ended more than once."""
        return sum(ends > 1 for ends in self._endings)

    def serve(self, pending: Pending, first_at: float, now: float) -> None:
        """Note that a request was answered."""
        self._end(pending, pending.waited_s, now, is_refused=False)
        self.hits += not pending.is_cold
        self.ttft_s.append(first_at - pending.arrival.at)

    def refuse(self, pending: Pending, code: str, now: float) -> None:
        """Note that a request ended in an error."""
        self._end(pending, now - pending.arrival.at, now, is_refused=True)
        self.refusals[code] += 1

    def _end(self, pending: Pending, wait_s: float, now: float, *, is_refused: bool) -> None:
        arrival = pending.arrival
        ends = self._endings[pending.number]
        self._endings[pending.number] = min(ends + 1, 2)
        self.ended_at = now
        self.waits.append(
            Wait(at=arrival.at, wait_s=wait_s, caller=arrival.caller, is_refused=is_refused)
        )
