"""The pages about HTTP have every path and every field, and none that is not there."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute, Route

from cortex_core import harness
from cortex_core.catalogue import Catalogue
from cortex_core.fleet import overview, views
from cortex_core.fleet.state import FleetState
from cortex_core.routing import explain, record
from cortex_core.server.clock import SystemClock
from cortex_core.server.drain import Drain
from cortex_core.wire import admin, fit, neuron as wire, weights
from cortex_core.wire.openai import models
from cortex_gateway.api.background import Background
from cortex_gateway.app import build_app
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.ports import Body, UpstreamAnswer
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.settings import GatewaySettings
from neuron.api.control import ControlApi
from neuron.api.events import EventsApi
from neuron.api.followers import FollowersApi
from neuron.api.health import HealthApi
from neuron.api.marks import MarksApi
from neuron.api.weights import WeightsApi
from neuron.devices.declared import DeclaredSource
from neuron.lifespan import node_of
from neuron.settings import HarnessEntry, NeuronSettings
from tests.docs.tables import rows_of, section_of
from tests.fakes.gateway import NoFiles, control_without_nodes

NEURON: Sequence[type[msgspec.Struct]] = (
    wire.Discovery,
    wire.DiscoveredDevice,
    wire.Link,
    wire.Health,
    wire.DeviceHealth,
    wire.DeviceProcess,
    wire.Activation,
    wire.ActivationFailure,
    wire.ModelLoad,
    wire.ModelReport,
    harness.Capabilities,
    harness.Limit,
    harness.EngineVersion,
    wire.Servable,
    wire.Progress,
    wire.LoadRequest,
    wire.PeerRequest,
    wire.FollowerRequest,
    wire.Joined,
    wire.UnloadRequest,
    wire.SleepRequest,
    wire.WakeRequest,
    wire.PinRequest,
    wire.CordonRequest,
    weights.WeightsList,
    weights.WeightsEntry,
    weights.WeightsNews,
    weights.Disk,
    weights.PullRequest,
    wire.Measured,
    wire.StatusAnswer,
    wire.EndpointAnswer,
    fit.FitReport,
    fit.FitCheck,
    fit.FitDevice,
    fit.FitNeed,
    fit.FitSuggestion,
)
GATEWAY: Sequence[type[msgspec.Struct]] = (
    models.ModelList,
    models.ModelObject,
    models.ModelLocation,
    views.FleetHealth,
    views.NodeCount,
    overview.FleetOverview,
    overview.NodeView,
    overview.DeviceView,
    overview.ReplicaView,
    overview.UnloadedView,
    record.DecisionsAnswer,
    record.Record,
    record.Considered,
    explain.Explanation,
    explain.NodeOutlook,
    admin.ModelCommand,
    admin.ModelAnswer,
    admin.NodeOutcome,
    admin.LoadNews,
    fit.FitCommand,
    fit.FleetFit,
    fit.NodeFit,
    weights.PullCommand,
    admin.NodeCommand,
    admin.CordonAnswer,
    admin.DrainAnswer,
    admin.Departure,
    admin.ReloadAnswer,
    admin.ConfigChange,
    admin.ConfigView,
)


class NoUpstream:
    """For an application that is asked for its paths alone."""

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: Body
    ) -> UpstreamAnswer:
        raise NotImplementedError(url, headers, body)


def paths_of(routes: Sequence[BaseRoute]) -> list[tuple[str, str]]:
    """Give path and method of each route; HEAD comes with GET and is not listed."""
    return sorted(
        (route.path, method)
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    )


def documented_paths(page: str) -> list[tuple[str, str]]:
    rows = rows_of(page, "Paths")
    return sorted((row[0], row[1]) for row in rows if row[0].startswith("/"))


async def test_gateway_page_has_every_path() -> None:
    """Ours: a path without a row is one that nobody may rely on."""
    clock, store = SystemClock(), FleetStore(FleetState(), Catalogue())
    proxy = Proxy(
        store=store,
        upstream=NoUpstream(),
        settings=LiveSettings(GatewaySettings()),
        metrics=GatewayMetrics(CollectorRegistry()),
        clock=clock,
        journal=Journal(clock, lambda kind: None),
        random=lambda: 0.0,
    )
    async with control_without_nodes(store) as control:
        app = build_app(
            control=control,
            configured=NoFiles(),
            proxy=proxy,
            drain=Drain(),
            version="0",
            clock=clock,
            read_pdf=None,
            records=None,
            background=Background(1),
            new_id=str,
        )

    assert documented_paths("gateway-http") == paths_of(app.routes)


async def test_neuron_page_has_every_path() -> None:
    """Ours: as above."""
    settings = NeuronSettings(harnesses=(HarnessEntry(name="simulated"),))
    async with (
        asyncio.timeout(5),
        node_of(settings, source=DeclaredSource(()), clock=SystemClock()) as (node, parts),
    ):
        routes = [
            *ControlApi(node, settings, parts.clock).routes(),
            *MarksApi(node).routes(),
            *WeightsApi(node, settings.heartbeat_s, parts.clock).routes(),
            *EventsApi(node.feed).routes(),
            *FollowersApi(node.followers).routes(),
            *HealthApi(node, parts.metrics, parts.harnesses.values()).routes(),
        ]
    inference = [(route.value, "POST") for route in harness.Route]

    assert documented_paths("neuron-http") == sorted([*paths_of(routes), *inference])


@pytest.mark.parametrize("kind", NEURON, ids=lambda kind: kind.__name__)
def test_neuron_page_has_every_field(kind: type[msgspec.Struct]) -> None:
    """Ours: in the order in which they are on the wire."""
    documented = [row[0] for row in section_of("neuron-http", kind.__name__)]

    assert documented == [field.encode_name for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize("kind", GATEWAY, ids=lambda kind: kind.__name__)
def test_gateway_page_has_every_field(kind: type[msgspec.Struct]) -> None:
    """Ours: in the order in which they are on the wire."""
    documented = [row[0] for row in section_of("gateway-http", kind.__name__)]

    assert documented == [field.encode_name for field in msgspec.structs.fields(kind)]


def test_events_page_has_every_event() -> None:
    """Ours: names as they are on the wire."""
    documented = {row[0] for row in rows_of("events")}

    assert documented == {
        wire.SNAPSHOT_EVENT,
        wire.MODEL_EVENT,
        wire.HEALTH_EVENT,
        weights.WEIGHTS_EVENT,
    }
