"""The neuron's app: all paths, behind what both daemons need."""

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.harness import FILES_ROUTES, Route
from cortex_core.server.drain import Drain
from cortex_core.server.failures import Failures, exception_handlers
from cortex_core.server.guard import Guard
from cortex_core.server.limits import Limits
from cortex_core.units import bytes_from_mib
from neuron.api.control import ControlApi
from neuron.api.events import EventsApi
from neuron.api.fleet import FleetOnly
from neuron.api.followers import FollowersApi
from neuron.api.health import HealthApi
from neuron.api.inference import InferenceEndpoint, mark_not_admitted
from neuron.api.marks import MarksApi
from neuron.api.tokens import TokenEndpoint
from neuron.api.weights import WeightsApi
from neuron.supervisor.node import Node
from neuron.supervisor.parts import Parts

_WATCHED_PATHS = frozenset(("/discovery", "/events", "/followers", "/models"))
"""Answered while we drain too: gateways must see how it goes on. Event streams, and those that
followers live by, would otherwise keep a drain waiting for nothing."""


def make_app(node: Node, parts: Parts, drain: Drain) -> ASGIApp:
    """Return the whole app, ready to be served.

    Args:
        node: what is served.
        parts: what loads and unloads need.
        drain: counts requests and ends them when we go down.
    """
    control = ControlApi(node, parts.settings, parts.clock)
    health = HealthApi(node, parts.metrics, parts.harnesses.values())
    inference = {route.value: _inference(route, node, parts) for route in Route}
    app = Starlette(
        routes=[
            *control.routes(),
            *MarksApi(node).routes(),
            *WeightsApi(node, parts.settings.heartbeat_s, parts.clock).routes(),
            *EventsApi(node.feed).routes(),
            *FollowersApi(node.followers).routes(),
            *health.routes(),
            *(StarletteRoute(path, one, methods=["POST"]) for path, one in inference.items()),
        ],
        exception_handlers=exception_handlers(),
    )
    app.router.redirect_slashes = False
    counted = drain.wrap(_around(app, inference))
    members = FleetOnly(
        _watchable(app, counted), parts.settings.fleet_token, parts.metrics, parts.clock
    )
    limits = Limits(max_body_bytes=bytes_from_mib(parts.settings.max_body_mb))
    return mark_not_admitted(Guard(Failures(members), limits))


def _inference(route: Route, node: Node, parts: Parts) -> InferenceEndpoint | TokenEndpoint:
    endpoint = InferenceEndpoint(route, node.supervisor, parts.metrics, parts.clock)
    if route in FILES_ROUTES:
        return TokenEndpoint(route, endpoint, node.supervisor, parts)
    return endpoint


def _around(app: ASGIApp, inference: Mapping[str, ASGIApp]) -> ASGIApp:
    """Return `app` with requests to models led around it.

    Its router and its handling of errors, which is done once more outside, put four calls around
    every piece of an answer.
    """

    async def chosen(scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = app
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = inference.get(scope["path"], app)
        await endpoint(scope, receive, send)

    return chosen


def _watchable(app: ASGIApp, counted: ASGIApp) -> ASGIApp:
    async def chosen(scope: Scope, receive: Receive, send: Send) -> None:
        is_watching = scope["type"] != "http" or scope["path"] in _WATCHED_PATHS
        await (app if is_watching else counted)(scope, receive, send)

    return chosen
