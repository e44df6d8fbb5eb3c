"""What is loaded where."""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.fleet.feasibility import infeasible_reason
from cortex_core.fleet.reducers import with_command
from cortex_core.fleet.state import FleetState, NodeHealth, NodeState
from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.node import NodeFacts
from cortex_core.placement.case import Case
from cortex_core.placement.fit import free_bytes
from cortex_core.placement.place import find_room, is_coming
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import DEFAULT_POLICY, NO_RATES, EvictionPolicy, Rates
from cortex_core.placement.steps import Evict, Hold, Load, Wake
from cortex_core.replica import ReplicaStatus
from cortex_core.units import MIB
from tests.core.strategies import MODELS, NOW, catalogues, fleets

A, B = MODELS[:2]


def gpu_node(name: str, *sizes_mb: int) -> NodeState:
    devices = tuple(
        Device(index=DeviceIndex(i), name="SIM", vram_total_bytes=size * MIB)
        for i, size in enumerate(sizes_mb)
    )
    return NodeState(
        name=NodeName(name),
        endpoint=f"http://{name}",
        health=NodeHealth.UP,
        facts=NodeFacts(hostname=name, devices=devices, harnesses=("simulated",)),
    )


def fleet(*nodes: NodeState) -> FleetState:
    return FleetState(nodes={node.name: node for node in nodes})


def catalogue(**sizes_mb: int) -> Catalogue:
    profiles: Mapping[ModelId, Profile] = {
        ModelId(name): Profile(id=ModelId(name), harness="simulated", vram_mb=size)
        for name, size in sizes_mb.items()
    }
    return Catalogue(profiles=profiles)


def make_room(
    state: FleetState,
    catalogue: Catalogue,
    model: ModelId,
    now: float,
    *,
    policy: EvictionPolicy = DEFAULT_POLICY,
    rates: Rates = NO_RATES,
) -> Load | Wake | Evict | Hold:
    """Return what would be done for one model, if nobody else wanted anything."""
    case = Case(state=state, catalogue=catalogue, now=now, policy=policy, rates=rates)
    return find_room(case, model)


@given(fleets(), catalogues(), st.sets(st.sampled_from(MODELS)))
def test_planning_twice_plans_nothing_new(
    state: FleetState, models: Catalogue, demand: set[ModelId]
) -> None:
    """Ours: commands in flight plan to nothing."""
    for step in plan(state, models, demand, NOW):
        if isinstance(step, Load):
            state = with_command(state, step.replica, step.command)

    assert not [step for step in plan(state, models, demand, NOW) if isinstance(step, Load)]


@given(fleets(), catalogues(), st.sets(st.sampled_from(MODELS)))
def test_a_plan_never_promises_memory_twice(
    state: FleetState, models: Catalogue, demand: set[ModelId]
) -> None:
    """Ours: over one whole plan, no device is given more than it had free."""
    taken: dict[tuple[NodeName, DeviceIndex], int] = {}
    for step in plan(state, models, demand, NOW):
        if isinstance(step, Load):
            for index in step.command.devices:
                key = (step.replica.node, index)
                share = (step.command.vram_bytes or 0) // len(step.command.devices)
                taken[key] = taken.get(key, 0) + share

    for (name, index), size in taken.items():
        assert size <= free_bytes(state, models, state.nodes[name])[index]


@given(fleets(), catalogues(), st.sampled_from(MODELS))
def test_loads_go_only_where_they_are_feasible_and_the_node_can_be_reached(
    state: FleetState, models: Catalogue, model: ModelId
) -> None:
    """Ours."""
    step = make_room(state, models, model, NOW)

    if isinstance(step, Load):
        node = state.nodes[step.replica.node]
        profile = models.profiles[model]
        assert node.is_reachable
        assert not node.is_draining
        assert infeasible_reason(profile, node) is None
        assert node.facts is not None
        assert len(step.command.devices) == (profile.min_devices if node.facts.devices else 0)
    elif isinstance(step, Wake):
        node = state.nodes[step.replica.node]
        assert node.takes_work
        assert node.replicas[model].status is ReplicaStatus.SLEEPING
    else:
        assert isinstance(step, Evict | Hold)
    if isinstance(step, Hold):
        assert model not in models.profiles or len(step.verdicts) == len(state.nodes)
        assert all(verdict.reason for verdict in step.verdicts)


@given(fleets(), catalogues(), st.sets(st.sampled_from(MODELS)))
def test_nothing_is_loaded_or_woken_on_a_device_that_cannot_be_used(
    state: FleetState, models: Catalogue, demand: set[ModelId]
) -> None:
    """Issue 5: a device that cannot be used any more is `poisoned`; other devices go on."""
    for step in plan(state, models, demand, NOW):
        if isinstance(step, Load | Wake):
            broken = state.nodes[step.replica.node].broken
            assert broken.isdisjoint(step.command.devices)
        elif isinstance(step, Evict):
            assert state.nodes[step.swap.node].broken.isdisjoint(step.swap.devices)


def with_condition(node: NodeState, index: int, condition: DeviceCondition) -> NodeState:
    """Return a node of which one device is in this condition."""
    reading = DeviceReading(
        index=DeviceIndex(index), condition=condition, condition_reason="it has to be reset"
    )
    return msgspec.structs.replace(node, readings={**node.readings, reading.index: reading})


def test_other_devices_of_a_node_with_a_poisoned_one_are_used() -> None:
    """Issue 5: other devices go on."""
    node = with_condition(gpu_node("n", 48_000, 24_000), 0, DeviceCondition.POISONED)
    step = make_room(fleet(node), catalogue(a=10_000), ModelId("a"), NOW)

    assert isinstance(step, Load)
    assert step.command.devices == (1,)


@pytest.mark.parametrize("condition", [DeviceCondition.POISONED, DeviceCondition.GONE])
def test_node_without_a_usable_device_says_which_is_what(condition: DeviceCondition) -> None:
    """Ours: an operator reads the reason in `explain`, and that waiting may help."""
    node = with_condition(gpu_node("n", 24_000), 0, condition)
    step = make_room(fleet(node), catalogue(a=10_000), ModelId("a"), NOW)

    assert isinstance(step, Hold)
    assert step.verdicts[0].reason == f"device 0 is {condition}: it has to be reset"
    assert not step.verdicts[0].is_permanent
    assert not step.verdicts[0].lacks_room


@pytest.mark.parametrize("condition", [DeviceCondition.UNKNOWN, DeviceCondition.DEGRADED])
def test_device_of_which_little_is_known_is_used(condition: DeviceCondition) -> None:
    """Ours: an older neuron says nothing of the condition, and serves."""
    node = with_condition(gpu_node("n", 24_000), 0, condition)

    assert isinstance(make_room(fleet(node), catalogue(a=10_000), ModelId("a"), NOW), Load)


def test_a_model_goes_where_most_memory_is_free() -> None:
    """Ours: two models spread before they share."""
    state = fleet(gpu_node("small", 24_000), gpu_node("big", 48_000))

    steps = plan(state, catalogue(a=10_000, b=30_000), [ModelId("a"), ModelId("b")], NOW)

    placed = {step.replica.model: step.replica.node for step in steps if isinstance(step, Load)}
    assert placed == {"a": "big", "b": "big"}


def test_within_a_node_the_emptiest_device_is_taken_as_the_driver_sees_it() -> None:
    """Ours: memory that a foreign process holds is not free, whatever the ledger says."""
    node = gpu_node("n", 24_000, 24_000)
    reading = DeviceReading(index=DeviceIndex(0), vram_free_bytes=12_000 * MIB)
    state = fleet(msgspec.structs.replace(node, readings={DeviceIndex(0): reading}))

    small = make_room(state, catalogue(a=10_000), ModelId("a"), NOW)
    both = plan(state, catalogue(a=20_000, b=20_000), [ModelId("a"), ModelId("b")], NOW)

    assert isinstance(small, Load)
    assert small.command.devices == (1,)
    assert isinstance(both[1], Hold)


def test_two_models_in_one_plan_do_not_share_the_same_room() -> None:
    """Ours: the second sees what the first takes."""
    state = fleet(gpu_node("only", 24_000))

    steps = plan(state, catalogue(a=20_000, b=20_000), [ModelId("a"), ModelId("b")], NOW)

    assert isinstance(steps[0], Load)
    assert isinstance(steps[1], Hold)
    assert "no room now: it takes 20000 MiB, free are 4000 MiB" in steps[1].why
    assert not steps[1].is_permanent


def test_tensor_parallel_takes_that_many_devices() -> None:
    """Contract: min_devices is the tensor-parallel size."""
    profile = Profile(id=A, harness="simulated", vram_mb=40_000, min_devices=2)
    state = fleet(gpu_node("n", 24_000, 8_000, 24_000))

    step = make_room(state, Catalogue(profiles={A: profile}), A, NOW)

    assert isinstance(step, Load)
    assert step.request.devices == (0, 2)
    assert step.request.tensor_parallel == 2


def test_stages_share_the_devices_between_them() -> None:
    """Ours: as many devices as before, in stages of the tensor-parallel size that is left."""
    profile = Profile(id=A, harness="simulated", vram_mb=40_000, min_devices=4, pipeline_parallel=2)
    state = fleet(gpu_node("n", 12_000, 12_000, 12_000, 12_000))

    step = make_room(state, Catalogue(profiles={A: profile}), A, NOW)

    assert isinstance(step, Load)
    assert step.request.devices == (0, 1, 2, 3)
    assert (step.request.tensor_parallel, step.request.pipeline_parallel) == (2, 2)


def test_a_model_too_big_for_every_node_is_held_for_good() -> None:
    """Ours: permanent, with the numbers."""
    hold = make_room(fleet(gpu_node("n", 24_000)), catalogue(a=30_000), ModelId("a"), NOW)

    assert isinstance(hold, Hold)
    assert hold.is_permanent
    assert "it needs 1 device(s) of 30000 MiB each; the node's have 24000 MiB" in hold.why


def test_a_command_counts_as_coming_until_it_is_answered() -> None:
    """Ours: one load however many ask."""
    state = fleet(gpu_node("n", 24_000))
    models = catalogue(a=10_000)
    (step,) = plan(state, models, [ModelId("a")], NOW)
    assert isinstance(step, Load)

    assert not is_coming(state, ModelId("a"))
    assert is_coming(with_command(state, step.replica, step.command), ModelId("a"))
