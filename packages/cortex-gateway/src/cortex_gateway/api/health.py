"""What probes and people ask: is the gateway alive, is it ready, is the fleet well."""

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import encode_json
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.fleet.views import fleet_health
from cortex_gateway.ports import Store


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `/livez` and `/readyz`."""

    status: str
    """`ok`, or `unready`."""
    reason: str | None = None


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `/version`."""

    name: str
    version: str


def routes(store: Store, *, version: str, is_draining: Callable[[], bool]) -> list[Route]:
    """Return the routes of `/`, `/api/hello`, `/health`, `/livez`, `/readyz` and `/version`.

    Args:
        store: where the snapshot comes from.
        version: of this distribution.
        is_draining: whether the process is going down.
    """
    has_been_ready = False

    async def health(_: Request) -> Response:
        # Given: 200 whatever the status says; probes that want a status code have `/readyz`.
        return _json(fleet_health(store.state))

    async def alive(_: Request) -> Response:
        return _json(Probe(status="ok"))

    async def ready(_: Request) -> Response:
        nonlocal has_been_ready
        reason = unready_reason(store.state, is_starting=not has_been_ready)
        reason = "draining" if is_draining() else reason
        if reason is None:
            has_been_ready = True
            return _json(Probe(status="ok"))
        return _json(Probe(status="unready", reason=reason), status=503)

    async def told_version(_: Request) -> Response:
        return _json(Version(name="cortex-gateway", version=version))

    return [
        Route("/", health, methods=["GET"]),
        # Claude Code asks for its head before anything else, without a key.
        Route("/api/hello", alive, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/livez", alive, methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/version", told_version, methods=["GET"]),
    ]


def unready_reason(state: FleetState, *, is_starting: bool = True) -> str | None:
    """Return why requests had better go to another gateway, or `None`.

    Ready is who has asked every node once, whether it answered or not, and reaches at least one.
    Nodes that are named later, while it runs, need not have been asked.
    """
    unasked = [
        node.name
        for node in state.nodes.values()
        if node.health is NodeHealth.UNSEEN and not node.misses
    ]
    if unasked and is_starting:
        return f"not heard of yet: {', '.join(unasked)}"
    if not any(node.is_reachable for node in state.nodes.values()):
        return "no node can be reached"
    return None


def _json(value: object, status: int = 200) -> Response:
    return Response(encode_json(value), status_code=status, media_type="application/json")
