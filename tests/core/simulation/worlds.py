"""Fleets, catalogues and traces of every kind, and what holds for every simulation of them."""

from collections.abc import Sequence

import msgspec
from hypothesis import strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import Strategy
from cortex_core.routing.queue import Priority
from cortex_core.simulation.machines import (
    EvictionTable,
    FleetFile,
    LoadFault,
    Outage,
    QueueTable,
    SimulatedDevice,
    SimulatedNode,
)
from cortex_core.simulation.run import Run
from cortex_core.simulation.trace import Arrival, from_zero
from cortex_core.units import bytes_from_mib

NODES = tuple(NodeName(f"node-{number}") for number in range(3))

MODELS = tuple(ModelId(f"model-{letter}") for letter in "abcdef")

ADAPTERS = tuple(ModelId(f"adapter-{letter}") for letter in "pqrs")

BASES = MODELS[:2]

CALLERS = ("ann", "bob", "runaway")

HERE = frozenset({"loading", "reloading", "loaded"})


def machine(name: str, *sizes_mb: int, **more: object) -> SimulatedNode:
    """Return a node with devices of these sizes."""
    devices = tuple(SimulatedDevice(vram_total_mb=size) for size in sizes_mb)
    return msgspec.convert({"name": name, "devices": devices, **more}, SimulatedNode)


def models(**sizes_mb: int) -> Catalogue:
    """Return a catalogue of models with these sizes."""
    return Catalogue(
        profiles={
            ModelId(name): Profile(id=ModelId(name), harness="simulated", vram_mb=size)
            for name, size in sizes_mb.items()
        }
    )


def asked(
    at: float, model: str, caller: str = "ann", prompt: int = 100, tokens: int = 50
) -> Arrival:
    """Return one request."""
    return Arrival(
        at=at,
        model=ModelId(model),
        caller=caller,
        prompt_tokens=prompt,
        completion_tokens=tokens,
    )


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a simulation."""

    fleet: FleetFile
    catalogue: Catalogue
    arrivals: tuple[Arrival, ...]
    strategy: Strategy


@st.composite
def machines(draw: st.DrawFn, name: NodeName) -> SimulatedNode:
    sizes = draw(st.lists(st.sampled_from([16_000, 24_000, 48_000]), min_size=1, max_size=2))
    return SimulatedNode(
        name=name,
        devices=tuple(SimulatedDevice(vram_total_mb=size) for size in sizes),
        load_s=draw(st.sampled_from([0.0, 5.0])),
        load_mb_per_s=draw(st.sampled_from([500.0, 4000.0])),
        unload_s=draw(st.sampled_from([0.0, 2.0])),
        sleep_mb=draw(st.sampled_from([0, 30_000])),
        max_in_flight=draw(st.sampled_from([1, 4, 32])),
    )


@st.composite
def profiles(draw: st.DrawFn, model: ModelId, *, is_plain: bool) -> Profile:
    return Profile(
        id=model,
        harness="simulated",
        vram_mb=draw(st.integers(2_000, 30_000)),
        min_devices=draw(st.sampled_from([1, 1, 1, 2])),
        pinned_on=() if is_plain else draw(st.sampled_from([(), (), (NODES[0],)])),
        residency_priority=None if is_plain else draw(st.sampled_from([None, None, 50, 200])),
        engine={"enable_lora": True, "max_loras": draw(st.integers(1, 3))},
    )


@st.composite
def adapters(
    draw: st.DrawFn, model: ModelId, bases: Sequence[ModelId], *, is_plain: bool
) -> Profile:
    return Profile(
        id=model,
        harness="simulated",
        vram_mb=0,
        base=draw(st.sampled_from(bases)),
        residency_priority=None if is_plain else draw(st.sampled_from([None, None, 50, 200])),
    )


@st.composite
def arrivals(draw: st.DrawFn, asked_for: Sequence[ModelId] = MODELS) -> tuple[Arrival, ...]:
    count = draw(st.integers(0, 40))
    drawn = [
        Arrival(
            at=draw(st.floats(0, 200)),
            model=draw(st.sampled_from(asked_for)),
            caller=draw(st.sampled_from(CALLERS)),
            prompt_tokens=draw(st.integers(0, 5_000)),
            completion_tokens=draw(st.integers(0, 500)),
            priority=draw(st.sampled_from(Priority)),
        )
        for _ in range(count)
    ]
    return from_zero(drawn)


@st.composite
def outages(draw: st.DrawFn, names: Sequence[NodeName]) -> Outage:
    return Outage(
        node=draw(st.sampled_from(names)),
        at_s=draw(st.floats(0, 200)),
        for_s=draw(st.floats(0.5, 60)),
    )


@st.composite
def load_faults(draw: st.DrawFn, names: Sequence[NodeName], wanted: Sequence[ModelId]) -> LoadFault:
    return LoadFault(
        model=draw(st.sampled_from(wanted)),
        node=draw(st.none() | st.sampled_from(names)),
        failures=draw(st.integers(0, 3)),
        slow=draw(st.sampled_from([1.0, 5.0])),
    )


@st.composite
def fleets(
    draw: st.DrawFn, names: Sequence[NodeName], wanted: Sequence[ModelId], *, is_plain: bool
) -> FleetFile:
    return FleetFile(
        nodes=tuple(draw(machines(name)) for name in names),
        eviction=EvictionTable(
            min_residency_s=draw(st.sampled_from([0.0, 10.0, 60.0])),
            drain_s=10_000.0,
            idle_unload_s=None if is_plain else draw(st.sampled_from([None, 30.0])),
        ),
        # Turns may be so short that each of them serves one request.
        queue=QueueTable(hold_s=100_000.0 if is_plain else 600.0),
        outages=tuple(draw(st.lists(outages(names), max_size=0 if is_plain else 2))),
        load_faults=tuple(
            draw(st.lists(load_faults(names, wanted), max_size=0 if is_plain else 2))
        ),
    )


@st.composite
def worlds(draw: st.DrawFn, *, is_plain: bool = False) -> World:
    """Draw a world; a plain one has no faults, pins and priorities."""
    names = NODES[: draw(st.integers(1, 3))]
    wanted = MODELS[: draw(st.integers(1, 6))]
    known = {model: draw(profiles(model, is_plain=is_plain)) for model in wanted}
    on_bases = ADAPTERS[: draw(st.integers(0, 4))]
    bases = wanted[: len(BASES)]
    known |= {model: draw(adapters(model, bases, is_plain=is_plain)) for model in on_bases}
    return World(
        fleet=draw(fleets(names, wanted, is_plain=is_plain)),
        catalogue=Catalogue(profiles=known),
        arrivals=draw(arrivals((*MODELS, *on_bases))),
        strategy=draw(st.sampled_from(Strategy)),
    )


def over_committed(fleet: FleetFile, run: Run) -> list[str]:
    """Return where and when more was on a device than it has, from who was there and not from
    what the machines reckoned."""
    wrong = []
    for node in fleet.nodes:
        for index, device in enumerate(node.devices):
            changes: list[tuple[float, int]] = []
            for span in run.spans:
                if span.node == node.name and index in span.devices:
                    changes += [(span.begin, span.share_bytes), (span.end, -span.share_bytes)]
            held = 0
            # What leaves at a moment makes room for what comes at the same one.
            for at, change in sorted(changes):
                held += change
                if held > bytes_from_mib(device.vram_total_mb):
                    wrong.append(f"{node.name}/{index} at {at}")
    return wrong


def doubled(run: Run) -> list[str]:
    """Return which models were, or were brought, in two places at once."""
    wrong = []
    latest: dict[ModelId, float] = {}
    for span in sorted(run.spans, key=lambda span: span.begin):
        if span.status in HERE:
            if span.begin < latest.get(span.model, 0.0):
                wrong.append(f"{span.model} at {span.begin}")
            latest[span.model] = max(latest.get(span.model, 0.0), span.end)
    return wrong
