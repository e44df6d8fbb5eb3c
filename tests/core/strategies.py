"""Hypothesis strategies for fleets, catalogues and what happens to them."""

from hypothesis import strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.fleet.state import FleetState, NodeHealth, NodeState
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.units import MIB

MODELS = tuple(ModelId(f"org/model-{letter}") for letter in "abcde")
NODES = tuple(NodeName(f"node-{number}") for number in range(4))
NOW = 1000.0


@st.composite
def profiles(draw: st.DrawFn, model: ModelId) -> Profile:
    return Profile(
        id=model,
        harness="simulated",
        vram_mb=draw(st.none() | st.integers(0, 40_000)),
        min_devices=draw(st.integers(1, 2)),
        min_device_vram_mb=draw(st.sampled_from([0, 0, 16_000])),
        pinned_on=draw(st.sampled_from([(), (), (NODES[0],)])),
    )


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    chosen = draw(st.sets(st.sampled_from(MODELS)))
    return Catalogue(profiles={model: draw(profiles(model)) for model in sorted(chosen)})


@st.composite
def replicas(draw: st.DrawFn, node: NodeName, model: ModelId, devices: int) -> Replica:
    indexes = st.sets(st.integers(0, devices - 1), min_size=1) if devices else st.just(set())
    return Replica(
        id=ReplicaId(node=node, model=model),
        status=draw(st.sampled_from([s for s in ReplicaStatus if s != ReplicaStatus.UNLOADED])),
        devices=tuple(DeviceIndex(index) for index in sorted(draw(indexes))),
        vram_used_bytes=draw(st.none() | st.integers(0, 20_000 * MIB)),
        in_flight=draw(st.integers(0, 20)),
        queued=draw(st.integers(0, 5)),
        error=draw(st.none() | st.just("it broke")),
    )


CONDITIONS = st.sampled_from(
    [*[DeviceCondition.OK] * 4, DeviceCondition.UNKNOWN, DeviceCondition.POISONED]
)
"""Most devices are well, as otherwise most plans would be empty."""


@st.composite
def nodes(draw: st.DrawFn, name: NodeName) -> NodeState:
    count = draw(st.integers(0, 3))
    devices = tuple(
        Device(
            index=DeviceIndex(index),
            name="SIM",
            vram_total_bytes=draw(st.sampled_from([8_000, 24_000, 48_000])) * MIB,
        )
        for index in range(count)
    )
    held = draw(st.sets(st.sampled_from(MODELS), max_size=3))
    is_known = draw(st.sampled_from([True, True, True, False]))
    return NodeState(
        name=name,
        endpoint=f"http://{name}:13131",
        health=draw(st.sampled_from(NodeHealth)),
        is_draining=draw(st.sampled_from([False, False, True])),
        facts=NodeFacts(hostname=name, devices=devices, harnesses=("simulated",))
        if is_known
        else None,
        replicas={model: draw(replicas(name, model, count)) for model in sorted(held)},
        readings={
            device.index: DeviceReading(
                index=device.index,
                condition=draw(CONDITIONS),
                vram_free_bytes=draw(st.none() | st.integers(0, device.vram_total_bytes)),
            )
            for device in devices
        },
    )


@st.composite
def fleets(draw: st.DrawFn) -> FleetState:
    chosen = draw(st.sets(st.sampled_from(NODES)))
    return FleetState(nodes={name: draw(nodes(name)) for name in sorted(chosen)})
