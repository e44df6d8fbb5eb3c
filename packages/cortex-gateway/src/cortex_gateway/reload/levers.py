"""What a reload moves, and the moment at which it does."""

import random
from collections.abc import Callable

from starlette.types import ASGIApp

from cortex_core.ids import NodeName
from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_gateway.control.control import Control
from cortex_gateway.control.journal import Journal
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.ports import Upstream
from cortex_gateway.proxy.access import Access
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.reload.edge import Edge
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.trace import TraceRecorder


class Levers:
    """Everything that a reload moves, at one blow: nothing here waits or fails.

    Args:
        control: the fleet.
        live: the settings, as everybody reads them.
        accesses: of nodes and upstreams; this very mapping is filled anew.
    """

    def __init__(
        self, *, control: Control, live: LiveSettings, accesses: dict[NodeName, Access]
    ) -> None:
        self._accesses = accesses
        self._edge = Edge(live, accesses)
        self._control = control
        self._live = live
        self._listener: Callable[[Configuration], None] = lambda configuration: None

    def tell(self, listener: Callable[[Configuration], None]) -> None:
        """Have one more hear of every configuration that is put in force."""
        self._listener = listener

    def proxy(
        self,
        upstream: Upstream,
        metrics: GatewayMetrics,
        journal: Journal,
        clock: Clock,
        trace: TraceRecorder | None,
    ) -> Proxy:
        """Return the data path over what a reload moves."""
        return Proxy(
            store=self._control.store,
            upstream=upstream,
            settings=self._live,
            metrics=metrics,
            clock=clock,
            journal=journal,
            random=random.random,
            accesses=self._accesses,
            trace=None if trace is None else trace.note,
        )

    def protected(self, app: ASGIApp, drain: Drain) -> ASGIApp:
        """Return `app` within what its settings put around it."""
        return self._edge.protected(self._edge.opened(app), drain)

    def apply(self, configuration: Configuration) -> None:
        """Put a configuration in force."""
        settings = configuration.settings
        before = dict(self._accesses)
        self._edge.apply(settings, configuration.accesses)
        self._control.roster.set(settings.endpoints, settings.upstreams)
        for name in settings.endpoints:
            if before.get(name) != self._accesses.get(name):
                # What it is told with another token may differ.
                self._control.roster.watch_anew(name)
        self._control.store.configure(configuration.catalogue, settings.eviction.policy)
        self._listener(configuration)
