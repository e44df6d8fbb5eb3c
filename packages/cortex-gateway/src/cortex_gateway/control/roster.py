"""The nodes that this gateway speaks to: watched for as long as the settings name them."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping

from cortex_core.fleet.reducers import with_node
from cortex_core.fleet.state import NodeState
from cortex_core.ids import NodeName
from cortex_core.server.clock import Clock
from cortex_gateway.control.store import FleetStore
from cortex_gateway.control.upstreams import with_upstreams
from cortex_gateway.control.watcher import NodeWatcher, WatchPace
from cortex_gateway.ports import NodeClient
from cortex_gateway.settings import UpstreamEntry

MakeClient = Callable[[NodeName, str], NodeClient]
"""Returns a client for a node, by name and base URL."""


class Roster:
    """Starts and stops watchers, and owns the clients.

    Args:
        store: the fleet; nodes are put into it and taken out of it here.
        make_client: see `MakeClient`.
        clock: monotonic seconds.
        pace: how often nodes are asked.
        tasks: where the watchers run.
    """

    def __init__(
        self,
        *,
        store: FleetStore,
        make_client: MakeClient,
        clock: Clock,
        pace: WatchPace,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.clients: dict[NodeName, NodeClient] = {}
        """By node; the same mapping for as long as the gateway lives."""
        self._store = store
        self._make_client = make_client
        self._clock = clock
        self._pace = pace
        self._tasks = tasks
        self._endpoints: dict[NodeName, str] = {}
        self._upstreams: dict[NodeName, UpstreamEntry] = {}
        self._watches: dict[NodeName, asyncio.Task[None]] = {}

    def set(self, endpoints: Mapping[NodeName, str], upstreams: Iterable[UpstreamEntry]) -> None:
        """Have exactly these nodes and upstreams; one with another address is another one.

        What is not named any more is forgotten, and the requests that are with it go on.

        Args:
            endpoints: base URLs of neurons, by node.
            upstreams: services that are no neurons; no name is that of a node as well.
        """
        urls = {name: url.rstrip("/") for name, url in endpoints.items()}
        entries = {entry.name: entry for entry in upstreams}
        # First, because a name may be an upstream's now that was a node's.
        for name, url in self._endpoints.copy().items():
            if urls.get(name) != url:
                self._remove(name)
        for name, entry in self._upstreams.items():
            if entries.get(name) != entry:
                self._store.forget(name)
        for name, url in urls.items():
            if name not in self._endpoints:
                self._add(name, url)
        new = [entry for name, entry in entries.items() if self._upstreams.get(name) != entry]
        if new:
            now = self._clock.now()
            self._store.update(lambda state: with_upstreams(state, new, now))
        self._upstreams = entries

    def stop(self) -> None:
        """Stop to watch; the fleet stays as it was seen last."""
        for task in self._watches.values():
            task.cancel()

    def _add(self, name: NodeName, url: str) -> None:
        client = self._make_client(name, url)
        self._endpoints[name], self.clients[name] = url, client
        self._store.update(lambda state: with_node(state, NodeState(name=name, endpoint=url)))
        self._watch(name)

    def watch_anew(self, name: NodeName) -> None:
        """Begin to watch a node that is here from the start, and keep what was seen of it."""
        self._watches.pop(name).cancel()
        self._watch(name)

    def _watch(self, name: NodeName) -> None:
        watcher = NodeWatcher(
            name=name,
            client=self.clients[name],
            store=self._store,
            clock=self._clock,
            random=random.random,
            pace=self._pace,
        )
        self._watches[name] = self._tasks.create_task(watcher.run(), name=f"watch {name}")

    def _remove(self, name: NodeName) -> None:
        # First, so that no report of it comes late.
        self._watches.pop(name).cancel()
        del self._endpoints[name], self.clients[name]
        self._store.forget(name)
