"""`fleet.toml`: the machines of a simulated fleet, how fast they are, and what breaks on them."""

import pathlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex_core.catalogue import Catalogue, Mib
from cortex_core.config import load_toml, to_settings
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import EvictionPolicy, Strategy

Positive = Annotated[float, Meta(gt=0)]
AtLeastZero = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class SimulatedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device of a node, in its order."""

    vram_total_mb: Annotated[int, Meta(ge=1)]
    """Its memory in MiB."""


class SimulatedNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[nodes]]` entry."""

    name: NodeName
    """Unique; what `pinned_on` of the catalogue means."""
    devices: Annotated[tuple[SimulatedDevice, ...], Meta(min_length=1)]
    """What it has, each `{vram_total_mb = N}`."""
    load_s: AtLeastZero = 5.0
    """What a load takes besides the reading of weights."""
    load_mb_per_s: Positive = 1000.0
    """How fast weights are read that the host does not have in memory, in MiB per second."""
    warm_mb_per_s: Positive | None = None
    """How fast those are read that it has; none is as fast as the others."""
    page_cache_mb: Mib = 0
    """Host memory that keeps weights read lately, in MiB; 0 keeps none."""
    unload_s: AtLeastZero = 1.0
    """From the end of a model's last request until its memory is free."""
    sleep_mb: Mib = 0
    """Host memory for models that sleep, in MiB; 0 is a node whose models cannot sleep."""
    sleep_s: AtLeastZero = 1.0
    """How long a model takes to fall asleep."""
    wake_s: AtLeastZero = 1.0
    """What a wake takes besides the copying of weights."""
    wake_mb_per_s: Positive = 10000.0
    """How fast weights come back from host memory, in MiB per second."""
    prefill_tok_per_s: Positive = 5000.0
    """Prompt tokens per second of one model, one prompt at a time."""
    decode_tok_per_s: Positive = 50.0
    """Tokens per second of each running request."""
    max_in_flight: Count = 32
    """Requests that one model runs together, where its profile does not say."""


class Outage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[outages]]` entry: a node loses what it has and cannot be reached for a while."""

    node: NodeName
    """Which one."""
    at_s: AtLeastZero
    """When it goes."""
    for_s: Positive
    """How long it is away."""


class LoadFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[load_faults]]` entry: loads that fail, or are slow."""

    model: ModelId
    """Of which model."""
    node: NodeName | None = None
    """On which node; none is all of them."""
    failures: Annotated[int, Meta(ge=0)] = 0
    """How many of its first loads fail, on each node by itself."""
    slow: Positive = 1.0
    """Factor on how long its loads take."""


class EvictionTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[eviction]`: as in `cortex.toml`."""

    strategy: Literal["lru", "priority", "cost"] = "lru"
    """Which model gives way first, where the command line does not say."""
    min_residency_s: AtLeastZero = EvictionPolicy().min_residency_s
    """How long a model stays at least once it is loaded."""
    drain_s: Positive = EvictionPolicy().drain_s
    """How long the requests of a model that gives way may go on before they are cut."""
    idle_unload_s: Positive | None = None
    """Seconds without a request after which a model is unloaded; none is never."""

    def policy(self, strategy: Strategy | None = None) -> EvictionPolicy:
        """Return the same as decisions take it, with another strategy if one is given."""
        return EvictionPolicy(
            strategy=strategy or Strategy(self.strategy),
            min_residency_s=self.min_residency_s,
            drain_s=self.drain_s,
            idle_unload_s=self.idle_unload_s,
        )


class QueueTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[queue]`: how the gateway holds requests."""

    max_waiting: Count = 1024
    """Requests that may wait for one model."""
    max_waiting_per_caller: Count = 256
    """Those of one caller."""
    hold_s: Positive = 600.0
    """How long one waits before it is refused."""


class FleetFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`fleet.toml` of `cortex simulate`."""

    eviction: EvictionTable = EvictionTable()
    queue: QueueTable = QueueTable()
    report_s: Positive = 1.0
    """Between two reports of a node in which nothing but its load has changed."""
    wait_bound_s: Positive = 120.0
    """A caller whose worst wait is longer counts as starved."""
    nodes: Annotated[tuple[SimulatedNode, ...], Meta(min_length=1)]
    """The machines."""
    outages: tuple[Outage, ...] = ()
    """Nodes that go away, and come back empty."""
    load_faults: tuple[LoadFault, ...] = ()
    """Loads that do not go as they should."""


def load_fleet(path: pathlib.Path) -> FleetFile:
    """Read `fleet.toml`.

    Raises:
        SettingsError: with file, TOML path, what is wrong and what would be right.
    """
    file = to_settings(load_toml(path), FleetFile, str(path))
    check_fleet(file, str(path))
    return file


def check_fleet(file: FleetFile, source: str) -> None:
    """Check what single fields cannot say.

    Raises:
        SettingsError: a name is there twice, or not at all.
    """
    names: set[str] = set()
    for position, node in enumerate(file.nodes):
        if node.name in names:
            raise SettingsError(f"{source}: nodes[{position}].name: {node.name!r} is there twice")
        names.add(node.name)
    named = [(f"outages[{i}]", one.node) for i, one in enumerate(file.outages)]
    named += [(f"load_faults[{i}]", f.node) for i, f in enumerate(file.load_faults) if f.node]
    for where, name in named:
        if name not in names:
            raise SettingsError(f"{source}: {where}.node: there is no node {name!r}")


def check_sizes(catalogue: Catalogue, source: str) -> None:
    """Check that every model has a size: a simulation has nothing to measure it from.

    Raises:
        SettingsError: one has none.
    """
    for model, profile in catalogue.profiles.items():
        if profile.vram_mb is None:
            raise SettingsError(f"{source}: {model!r} has no vram_mb, which a simulation needs")
