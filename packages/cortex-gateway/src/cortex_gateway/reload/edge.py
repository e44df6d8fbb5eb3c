"""What a reload moves in a process that serves callers, whether or not it is one of several."""

import logging
from collections.abc import Mapping

from starlette.types import ASGIApp

from cortex_core.ids import NodeName
from cortex_core.server.drain import Drain
from cortex_core.server.guard import Guard
from cortex_core.server.limits import Limits
from cortex_core.server.stack import protect
from cortex_core.units import bytes_from_mib
from cortex_gateway.middleware import Origins
from cortex_gateway.proxy.access import Access
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.settings import GatewaySettings


class Edge:
    """The settings in force, and what they put around an app.

    Args:
        live: the settings, as everybody reads them.
        accesses: of nodes and upstreams; this very mapping is filled anew.
    """

    def __init__(self, live: LiveSettings, accesses: dict[NodeName, Access]) -> None:
        self._live = live
        self._accesses = accesses
        self._origins: Origins | None = None
        self._guard: Guard | None = None

    def opened(self, app: ASGIApp) -> ASGIApp:
        """Return `app` for the pages that may call it."""
        self._origins = Origins(app, self._live.current.gateway.cors_origins)
        return self._origins

    def protected(self, app: ASGIApp, drain: Drain) -> ASGIApp:
        """Return `app` within its bounds."""
        limits = Limits(max_body_bytes=bytes_from_mib(self._live.current.gateway.max_body_mb))
        self._guard = protect(app, drain=drain, limits=limits)
        return self._guard

    def apply(self, settings: GatewaySettings, accesses: Mapping[NodeName, Access]) -> None:
        """Put other settings in force."""
        self._live.current = settings
        self._accesses.clear()
        self._accesses.update(accesses)
        logging.getLogger().setLevel(settings.gateway.log_level.upper())
        if self._origins is not None:
            self._origins.allow(settings.gateway.cors_origins)
        if self._guard is not None:
            self._guard.limit_bodies(bytes_from_mib(settings.gateway.max_body_mb))
