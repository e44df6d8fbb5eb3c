"""Places with replicas that a worker has ahead of its requests, so that it need not ask for each.

A lease is a decision that the control process has taken once, for so many requests at a time: what
is leased counts as taken, and is one worker's alone. A worker that has a place left sends a request
there by itself. As soon as anybody stands in line for an engine, all that is leased of it and not
in use is called back, and every turn is asked for again; so nobody who comes after is served before
who waits, but for what was under way between two processes.
"""

import math
from collections.abc import Callable, Iterable

from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.routing.choose import places_left
from cortex_core.server.clock import Clock
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import ProxySettings
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines

MOST_AT_ONCE = 32
"""Places in one lease, at a replica that takes any number."""

Recall = Callable[[ReplicaId], None]
"""Calls back what one worker has with a replica."""


def lease_of(left: float, *, held: int, taken: int, workers: int) -> int:
    """Return how many places more a worker is given ahead.

    It is a part of what is left, so that the next request of another finds some too; with few left
    it is none. All that a worker has is at most an even share of what this gateway can have.

    Args:
        left: places that nobody has; infinity where any number is taken.
        held: places that the worker has already, in use or not.
        taken: places that all workers and this process have.
        workers: how many share.
    """
    if math.isinf(left):
        return MOST_AT_ONCE
    share = int(left + taken) // workers
    return max(0, min(int(left) // (2 * workers), share - held, MOST_AT_ONCE))


class Leases:
    """What is leased to all workers.

    Args:
        store: the fleet.
        lines: who waits.
        in_flight: the counts of places.
        settings: the bounds.
        clock: monotonic seconds.
        workers: how many there are.
    """

    def __init__(
        self,
        *,
        store: FleetStore,
        lines: Lines,
        in_flight: InFlight,
        settings: ProxySettings,
        clock: Clock,
        workers: int,
    ) -> None:
        self._store = store
        self._lines = lines
        self._in_flight = in_flight
        self._settings = settings
        self._clock = clock
        self._workers = workers
        self._holders: dict[ReplicaId, set[Recall]] = {}
        lines.on_line = self._stands

    def grant(self, replica: ReplicaId, recall: Recall, held: int) -> int:
        """Return how many places a worker may have ahead; the caller counts them as taken.

        Args:
            replica: with which.
            recall: calls back what the worker has with it.
            held: how many it has.
        """
        models = self._store.state.sharing(replica)
        if any(self._lines.waiting(model) for model in models) or not self._is_sound(replica):
            return 0
        places = lease_of(
            self._left(replica),
            held=held,
            taken=self._in_flight.replicas.get(replica, 0),
            workers=self._workers,
        )
        if places:
            self._holders.setdefault(replica, set()).add(recall)
        return places

    def forget(self, recall: Recall) -> None:
        """Forget a worker that is gone."""
        for replica in tuple(self._holders):
            self._holders[replica].discard(recall)
            if not self._holders[replica]:
                del self._holders[replica]

    def recall(self, replicas: Iterable[ReplicaId] | None = None) -> None:
        """Call back what is leased of some replicas, or of all."""
        for replica in tuple(self._holders if replicas is None else replicas):
            for recall in self._holders.pop(replica, ()):
                recall(replica)

    def look(self) -> None:
        """Call back what is leased of a replica that has become unfit, or has too many requests."""
        self.recall(
            [one for one in self._holders if not self._is_sound(one) or self._left(one) < 0]
        )

    def _stands(self, model: ModelId) -> None:
        """Call back whatever a request could have that has begun to wait."""
        state = self._store.state
        self.recall([one for one in self._holders if model in state.sharing(one)])

    def _left(self, replica: ReplicaId) -> float:
        node = self._store.state.nodes[replica.node]
        return places_left(
            self._store.catalogue,
            node,
            node.replicas[replica.model],
            in_flight=self._in_flight.depths,
            default=self._settings.max_in_flight,
            now=self._clock.now(),
        )

    def _is_sound(self, replica: ReplicaId) -> bool:
        return is_sound(self._store.state, replica)


def is_sound(state: FleetState, replica: ReplicaId) -> bool:
    """Whether nothing is known against sending requests to a replica."""
    node = state.nodes.get(replica.node)
    known = None if node is None else node.replicas.get(replica.model)
    if node is None or known is None or replica in state.breakers:
        return False
    return node.takes_work and known.is_servable
