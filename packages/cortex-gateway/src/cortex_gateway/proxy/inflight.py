"""How many requests are with each replica, and how many this gateway has open in all."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from cortex_core.ids import NodeName, ReplicaId


class InFlight:
    """Counters that go up and down in one `with`, so that no way out can leak one."""

    def __init__(self) -> None:
        self.requests = 0
        """Open requests, waiting ones included."""
        self.retries = 0
        """Attempts after a first one that failed, now running."""
        self.on_free: Callable[[ReplicaId], None] = lambda replica: None
        """Called when a place with a replica has come free."""
        self.request = _Request(self)
        """Counts a request while its context is open."""
        self._own: dict[ReplicaId, int] = {}
        self._depths: dict[ReplicaId, int] = {}

    @property
    def replicas(self) -> Mapping[ReplicaId, int]:
        """This gateway's attempts now running by replica; one without any has no entry."""
        return MappingProxyType(self._own)

    @property
    def depths(self) -> Mapping[ReplicaId, int]:
        """Requests with each replica: its latest report, and what was begun or ended here since.

        A replica without an entry has as many as its report says. One that has become idle since
        has an entry of 0, or it would seem as busy as that report found it.
        """
        return MappingProxyType(self._depths)

    def observe(self, replica: ReplicaId, reported: int) -> None:
        """Take a report that was just received; it counts every gateway's requests."""
        depth = max(reported, self._own.get(replica, 0))
        if depth:
            self._depths[replica] = depth
        else:
            self._depths.pop(replica, None)

    def forget(self, node: NodeName) -> None:
        """Drop what was reported of a node that is no longer there."""
        for replica in [one for one in self._depths if one.node == node]:
            if replica not in self._own:
                del self._depths[replica]

    def reserve(self, replica: ReplicaId) -> None:
        """Keep a place for a request that is about to be told so; `release` gives it back."""
        self._add(replica, 1)

    def release(self, replica: ReplicaId) -> None:
        """Give a place back that was reserved."""
        self._add(replica, -1)

    def change(self, replica: ReplicaId, places: int) -> None:
        """Count places that another process of this gateway has taken, or given back."""
        self._add(replica, places)

    def fill(self, replica: ReplicaId, places: int) -> None:
        """Count all places with a replica as taken, since it said so, until its next report.

        Args:
            replica: which has just refused an attempt that still runs.
            places: how many it has.
        """
        self._depths[replica] = max(self._depths.get(replica, 0), places + 1)

    def attempt(self, replica: ReplicaId, *, is_retry: bool) -> "_Attempt":
        """Count an attempt at `replica` while the context is open."""
        return _Attempt(self, replica, is_retry)

    def _add(self, replica: ReplicaId, change: int) -> None:
        own = self._own.get(replica, 0) + change
        if own > 0:
            self._own[replica] = own
        else:
            self._own.pop(replica, None)
        self._depths[replica] = max(self._depths.get(replica, 0) + change, 0)


# Classes, for a generator as a context costs several times as much with each request.


class _Request:
    def __init__(self, counts: InFlight) -> None:
        self._counts = counts

    def __enter__(self) -> None:
        self._counts.requests += 1

    def __exit__(self, *error: object) -> None:
        self._counts.requests -= 1


class _Attempt:
    __slots__ = ("_counts", "_is_retry", "_replica")

    def __init__(self, counts: InFlight, replica: ReplicaId, is_retry: bool) -> None:
        self._counts, self._replica, self._is_retry = counts, replica, is_retry

    def __enter__(self) -> None:
        self._counts._add(self._replica, 1)
        self._counts.retries += self._is_retry

    def __exit__(self, *error: object) -> None:
        counts = self._counts
        counts.retries -= self._is_retry
        counts._add(self._replica, -1)
        counts.on_free(self._replica)
