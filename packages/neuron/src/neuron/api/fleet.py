"""Who belongs to the fleet: requests that bring its token."""

import hmac
import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import AuthenticationError
from cortex_core.headers import CALLER_HEADER
from cortex_core.server.clock import Clock
from neuron.metrics import NeuronMetrics

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset(("/livez", "/readyz"))
"""Answered to everybody: what starts and stops processes has no token, and learns nothing."""

QUIET_S = 60.0
"""Time between two log lines about requests without the token; the metric counts all."""

MAX_CALLER_CHARACTERS = 200

_MEMBER_KEY = "neuron.is_of_fleet"


class FleetOnly:
    """ASGI app that lets only requests with the fleet's token through to another.

    Args:
        app: what is behind it.
        token: of the fleet; `None` lets everybody through, as a stranger.
        metrics: count who is refused.
        clock: paces the log.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, metrics: NeuronMetrics, clock: Clock
    ) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._metrics = metrics
        self._clock = clock
        self._tells_from = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope.

        Raises:
            AuthenticationError: the token is missing or another one.
        """
        if self._expected is not None and scope["type"] == "http":
            is_of_fleet = _brings(scope, self._expected)
            if not is_of_fleet and scope["path"] not in OPEN_PATHS:
                self._refuse(scope)
            scope[_MEMBER_KEY] = is_of_fleet
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> None:
        self._metrics.refusals.labels(AuthenticationError.code).inc()
        now = self._clock.now()
        if now >= self._tells_from:
            self._tells_from = now + QUIET_S
            logger.warning(
                "refused requests without the fleet's token",
                extra={"client": _peer(scope), "path": scope["path"][:200]},
            )
        raise AuthenticationError("this neuron answers its fleet: send the fleet's token")


def caller_of(scope: Scope) -> str:
    """Return whose request it is: as a gateway of the fleet says, else the address of the peer."""
    if scope.get(_MEMBER_KEY, False):
        for name, value in scope["headers"]:
            if name == CALLER_HEADER.encode():
                return str(value[:MAX_CALLER_CHARACTERS].decode("latin-1"))
    return "address:" + _peer(scope)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _brings(scope: Scope, expected: bytes) -> bool:
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    return len(sent) == 1 and hmac.compare_digest(sent[0], expected)
