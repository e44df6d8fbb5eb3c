"""Fleets that are well and nearly full, in which there is something to decide."""

from hypothesis import strategies as st

from cortex_core.catalogue import Catalogue, Profile, Replicas
from cortex_core.device import Device, DeviceReading
from cortex_core.fleet.state import FleetState, LoadFailure, NodeHealth, NodeState, Resident
from cortex_core.harness import Capabilities
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import Measured, NodeFacts
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.units import MIB

MODELS = tuple(ModelId(f"org/model-{letter}") for letter in "abcdefgh")
NODES = tuple(NodeName(f"node-{number}") for number in range(4))
NOW = 1000.0

COPIES = (Replicas(), Replicas(), Replicas(min=1), Replicas(min=2, max=3), Replicas(max=3))
BUDGETS = (None, 0, 10_000 * MIB, 24_000 * MIB, 64_000 * MIB)
STATUSES = (
    *[ReplicaStatus.LOADED] * 6,
    *[ReplicaStatus.SLEEPING] * 4,
    ReplicaStatus.LOADING,
    ReplicaStatus.UNLOADING,
    ReplicaStatus.FAILED,
)


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    profiles = {
        model: Profile(
            id=model,
            harness="simulated",
            vram_mb=draw(st.sampled_from([None, *[12_000, 20_000, 22_000, 40_000] * 3])),
            min_devices=draw(st.sampled_from([1, 1, 1, 2])),
            pinned_on=draw(st.sampled_from([(), (), (), (), (NODES[0],)])),
            residency_priority=draw(st.sampled_from([None, None, None, 50, 200])),
            idle_unload_s=draw(st.sampled_from([None, None, 60.0])),
            replicas=draw(st.sampled_from(COPIES)),
        )
        for model in draw(st.sets(st.sampled_from(MODELS), min_size=4))
    }
    return Catalogue(profiles=profiles)


@st.composite
def replicas(draw: st.DrawFn, node: NodeName, model: ModelId, devices: int) -> Replica:
    status = draw(st.sampled_from(STATUSES))
    is_there = status in (ReplicaStatus.LOADED, ReplicaStatus.SLEEPING)
    size = draw(st.sampled_from([6_000, 12_000, 20_000])) * MIB
    level = draw(st.sampled_from([1, 1, 2])) if status is ReplicaStatus.SLEEPING else None
    return Replica(
        id=ReplicaId(node=node, model=model),
        status=status,
        devices=(DeviceIndex(draw(st.integers(0, devices - 1))),),
        vram_used_bytes=size if status is ReplicaStatus.LOADED else None,
        in_flight=draw(st.sampled_from([0, 0, 0, 0, 4])),
        capabilities=Capabilities(sleep=draw(st.sampled_from([True, True, False]))),
        sleep_level=level,
        host_used_bytes=size if level == 1 else None,
        is_pinned=draw(st.sampled_from([False] * 6 + [True])),
        load_s=draw(st.sampled_from([None, 5.0, 60.0])) if is_there else None,
        wake_s=draw(st.sampled_from([None, 1.0, 4.0])) if is_there else None,
    )


@st.composite
def residents(draw: st.DrawFn) -> Resident:
    since = NOW - draw(st.sampled_from([500.0, 500.0, 100.0, 10.0]))
    return Resident(since=since, used=draw(st.floats(since, NOW)))


@st.composite
def readings(draw: st.DrawFn, index: DeviceIndex) -> DeviceReading:
    free = draw(st.sampled_from([None, None, None, 1_000 * MIB, 12_000 * MIB]))
    return DeviceReading(index=index, vram_free_bytes=free)


measurements = st.builds(
    Measured,
    vram_bytes=st.sampled_from([None, 6_000 * MIB, 19_500 * MIB + 1]),
    load_s=st.sampled_from([None, 30.0]),
    wake_s=st.sampled_from([None, 2.0]),
)


@st.composite
def nodes(draw: st.DrawFn, name: NodeName) -> NodeState:
    sizes = draw(st.sampled_from([(24_000,), (24_000,), (24_000, 24_000), (48_000,)]))
    devices = tuple(
        Device(index=DeviceIndex(index), name="SIM", vram_total_bytes=size * MIB)
        for index, size in enumerate(sizes)
    )
    held = draw(st.sets(st.sampled_from(MODELS), min_size=1, max_size=4))
    there = {model: draw(replicas(name, model, len(devices))) for model in sorted(held)}
    return NodeState(
        name=name,
        endpoint=f"http://{name}",
        health=draw(st.sampled_from([NodeHealth.UP] * 8 + [NodeHealth.DOWN])),
        is_draining=draw(st.sampled_from([False] * 9 + [True])),
        is_cordoned=draw(st.sampled_from([False] * 5 + [True])),
        facts=NodeFacts(hostname=name, devices=devices, harnesses=("simulated",)),
        replicas=there,
        residents={
            model: draw(residents())
            for model, replica in there.items()
            if replica.status in (ReplicaStatus.LOADED, ReplicaStatus.SLEEPING)
        },
        readings={device.index: draw(readings(device.index)) for device in devices},
        sleep_budget_bytes=draw(st.sampled_from(BUDGETS)),
        cycles=draw(st.sampled_from([None, 3, 60])),
        measured=draw(st.dictionaries(st.sampled_from(MODELS), measurements, max_size=2)),
        freed_at=draw(st.sampled_from([None, None, NOW - 1.0])),
    )


@st.composite
def fleets(draw: st.DrawFn) -> FleetState:
    chosen = draw(st.sets(st.sampled_from(NODES), min_size=1, max_size=2))
    failed = draw(st.sampled_from([None, None, MODELS[0]]))
    failure = LoadFailure(
        reason="it is full",
        failures=1,
        retry_at=NOW + draw(st.sampled_from([-1.0, 5.0])),
        is_for_room=True,
        needed_bytes=15_000 * MIB,
    )
    names = sorted(chosen)
    return FleetState(
        nodes={name: draw(nodes(name)) for name in names},
        failures={ReplicaId(node=names[0], model=failed): failure} if failed else {},
    )
