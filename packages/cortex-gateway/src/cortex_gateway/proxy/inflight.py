"""How many requests this gateway has open, by replica and in all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from cortex_core.ids import ReplicaId


class InFlight:
    """Counters that go up and down in one `with`, so that no way out can leak one."""

    def __init__(self) -> None:
        self.requests = 0
        """Open requests, waiting ones included."""
        self.retries = 0
        """Attempts after a first one that failed, now running."""
        self._replicas: dict[ReplicaId, int] = {}

    @property
    def replicas(self) -> Mapping[ReplicaId, int]:
        """Attempts now running by replica; one without any has no entry."""
        return MappingProxyType(self._replicas)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the context is open."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def attempt(self, replica: ReplicaId, *, is_retry: bool) -> Iterator[None]:
        """Count an attempt at `replica` while the context is open."""
        self._replicas[replica] = self._replicas.get(replica, 0) + 1
        self.retries += is_retry
        try:
            yield
        finally:
            self.retries -= is_retry
            left = self._replicas[replica] - 1
            if left:
                self._replicas[replica] = left
            else:
                del self._replicas[replica]
