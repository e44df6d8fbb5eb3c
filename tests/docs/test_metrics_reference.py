"""The tables of metrics list every series of both daemons, and none that is not there."""

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from cortex_core.fleet.reducers import from_endpoints
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId, NodeName
from cortex_core.server.clock import SystemClock
from cortex_core.server.drain import Drain
from cortex_core.server.vitals import Vitals
from cortex_gateway.fleet_metrics import FleetCollector
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.workers.crew import WorkerMetrics
from neuron.engines.simulated import SimulatedHarness
from neuron.metrics import NeuronMetrics
from neuron.settings import SimulatedSettings
from tests.docs.tables import rows_of

Row = tuple[str, str, tuple[str, ...]]
"""Name, kind, labels."""


def documented(section: str, prefix: str) -> list[Row]:
    rows = [row for row in rows_of("metrics", section) if row[0].startswith(prefix)]
    return sorted((row[0], row[1], labels_of(row[2])) for row in rows)


def labels_of(cell: str) -> tuple[str, ...]:
    return tuple(label for label in cell.split(", ") if label)


def registered(registry: CollectorRegistry) -> list[Row]:
    """Give all that is on a registry; what has no samples yet tells its labels all the same."""
    rows: set[Row] = set()
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            (family,) = collector.describe()
            rows.add((shown(family.name, family.type), family.type, collector._labelnames))
        else:
            for family in collector.collect():
                labels: tuple[str, ...] = getattr(family, "_labelnames")  # noqa: B009 - private
                rows.add((shown(family.name, family.type), family.type, labels))
    return sorted(rows)


def shown(name: str, kind: str) -> str:
    """Give a family's name as a scraper sees it."""
    return f"{name}_total" if kind == "counter" else name


def test_gateway_series_are_all_documented() -> None:
    """Ours: dashboards are built from this table."""
    registry = CollectorRegistry()
    GatewayMetrics(registry)
    state = from_endpoints({NodeName("left"): "http://127.0.0.1:1"})
    registry.register(FleetCollector(lambda: state, dict, lambda: 0.0))
    Vitals(registry, "cortex", Drain())
    WorkerMetrics(registry)

    shown_here = documented("Gateway", "cortex_") + documented("Process", "process_")
    assert shown_here == registered(registry)


def test_neuron_series_are_all_documented() -> None:
    """Ours: dashboards are built from this table."""
    registry = CollectorRegistry()
    NeuronMetrics(registry)
    Vitals(registry, "neuron", Drain())

    shown_here = documented("Neuron", "neuron_") + documented("Process", "process_")
    assert shown_here == registered(registry)


async def test_series_of_the_simulated_engine_are_all_documented() -> None:
    """Ours: they appear beside the neuron's own."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(SimulatedSettings(load_s=0), SystemClock(), tasks)
        spec = ModelSpec(model=ModelId("org/a"), harness="simulated")
        engine = await harness.load(spec, lambda *news: None)
        text = harness.metrics().decode()
        await engine.close(0)

    families = list(text_string_to_metric_families(text))
    rows = [(shown(f.name, f.type), f.type, tuple(f.samples[0].labels)) for f in families]
    assert documented("Neuron", "simulated_") == sorted(rows)
