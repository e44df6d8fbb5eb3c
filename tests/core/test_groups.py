"""Models that several nodes hold together: all of them, or none."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, CatalogueFile, Profile
from cortex_core.errors import SettingsError
from cortex_core.fleet.reducers import with_command
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.placement.case import Case
from cortex_core.placement.drain import Draining, departures
from cortex_core.placement.fit import free_bytes
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import DEFAULT_POLICY, NO_RATES
from cortex_core.placement.steps import Hold, Load
from cortex_core.placement.victims import candidates
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.units import MIB
from tests.core.strategies import MODELS, NODES, NOW, catalogues, fleets
from tests.core.test_placement import fleet, gpu_node, make_room

WIDE = ModelId("org/wide")


@st.composite
def wide_profiles(draw: st.DrawFn, model: ModelId) -> Profile:
    names = draw(st.permutations(NODES))[: draw(st.integers(2, 3))]
    return Profile(
        id=model,
        harness="simulated",
        vram_mb=draw(st.none() | st.integers(0, 60_000)),
        min_devices=len(names) * draw(st.integers(1, 2)),
        nodes=tuple(names),
    )


@st.composite
def mixed(draw: st.DrawFn) -> Catalogue:
    """Return a catalogue in which some models are for several nodes."""
    base = draw(catalogues())
    wide = {model: draw(wide_profiles(model)) for model in draw(st.sets(st.sampled_from(MODELS)))}
    return Catalogue(profiles={**base.profiles, **wide})


@given(fleets(), mixed(), st.sets(st.sampled_from(MODELS)))
def test_load_over_several_nodes_has_all_of_them(
    state: FleetState, models: Catalogue, demand: set[ModelId]
) -> None:
    """Ours: the head is told, and each member is up and has the room that is meant for it."""
    for step in plan(state, models, demand, NOW):
        if not isinstance(step, Load):
            continue
        profile = models.profiles[step.replica.model]
        members = step.command.members
        assert [member.node for member in members] == list(profile.nodes[1:])
        assert step.replica.node == (profile.nodes or (step.replica.node,))[0]
        if not profile.nodes:
            assert step.request.peers is None
            continue
        assert step.request.tensor_parallel == profile.min_devices
        peers = step.request.peers or ()
        for member, peer in zip(members, peers, strict=True):
            node = state.nodes[member.node]
            assert node.takes_work
            assert peer.endpoint == node.endpoint
            assert (peer.devices or ()) == member.devices
            assert node.facts is not None
            if node.facts.devices:
                assert len(member.devices) == profile.min_devices // len(profile.nodes)


@given(fleets(), mixed(), st.sets(st.sampled_from(MODELS)))
def test_plan_never_promises_memory_of_members_twice(
    state: FleetState, models: Catalogue, demand: set[ModelId]
) -> None:
    """Ours: what a head's load takes on other nodes is nobody else's."""
    taken: dict[tuple[NodeName, DeviceIndex], int] = {}
    for step in plan(state, models, demand, NOW):
        if isinstance(step, Load):
            places = [(step.replica.node, step.command.devices, step.command.vram_bytes)]
            places += [(one.node, one.devices, one.vram_bytes) for one in step.command.members]
            for name, devices, size in places:
                for index in devices:
                    share = (size or 0) // len(devices)
                    taken[name, index] = taken.get((name, index), 0) + share

    for (name, index), size in taken.items():
        assert size <= free_bytes(state, models, state.nodes[name])[index]


@given(fleets(), mixed(), st.sets(st.sampled_from(MODELS)))
def test_planning_twice_plans_nothing_new_for_groups(
    state: FleetState, models: Catalogue, demand: set[ModelId]
) -> None:
    """Ours: as for models on one node."""
    for step in plan(state, models, demand, NOW):
        if isinstance(step, Load):
            state = with_command(state, step.replica, step.command)

    assert not [step for step in plan(state, models, demand, NOW) if isinstance(step, Load)]


def wide(*names: str, vram_mb: int = 40_000) -> Catalogue:
    profile = Profile(
        id=WIDE,
        harness="simulated",
        vram_mb=vram_mb,
        min_devices=len(names),
        nodes=tuple(NodeName(name) for name in names),
    )
    return Catalogue(profiles={WIDE: profile})


def test_head_gets_the_load_with_the_devices_of_its_peers() -> None:
    """Ours: half of the model on each of two nodes that are both too small for it."""
    state = fleet(gpu_node("beast", 24_000), gpu_node("mule", 8_000, 24_000))

    step = make_room(state, wide("beast", "mule"), WIDE, NOW)

    assert isinstance(step, Load)
    assert step.replica.node == "beast"
    assert step.request.devices == (0,)
    assert (step.request.tensor_parallel, step.request.vram_mb) == (2, 40_000)
    assert step.command.vram_bytes == 20_000 * MIB
    (peer,) = step.request.peers or ()
    assert (peer.endpoint, peer.devices) == ("http://mule", (1,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"health": NodeHealth.DOWN}, "mule: the node is down"),
        ({"is_draining": True}, "mule: the node is draining"),
        ({"is_cordoned": True}, "mule: the node is cordoned"),
        ({"facts": None}, "mule: nothing is known of the node yet"),
    ],
)
def test_member_that_is_not_there_is_named(change: dict[str, object], words: str) -> None:
    """Ours: nothing is loaded, and nobody gives way, for half of a model."""
    mule = msgspec.structs.replace(gpu_node("mule", 24_000), **change)
    state = fleet(gpu_node("beast", 24_000), mule)

    hold = make_room(state, wide("beast", "mule"), WIDE, NOW)

    assert isinstance(hold, Hold)
    assert "it needs beast and mule together" in hold.why
    assert words in hold.why
    assert "mule: its head is beast" in hold.why


def test_member_that_the_fleet_does_not_have_is_named() -> None:
    """Ours: a name that is wrong in the catalogue is told as such."""
    hold = make_room(fleet(gpu_node("beast", 24_000)), wide("beast", "mul"), WIDE, NOW)

    assert isinstance(hold, Hold)
    assert "mul: it is not in the fleet" in hold.why


def test_part_of_a_copy_counts_and_never_gives_way() -> None:
    """Ours: its room is taken, and only its head can give it back."""
    part = Replica(
        id=ReplicaId(node=NodeName("mule"), model=WIDE),
        status=ReplicaStatus.FOLLOWING,
        devices=(DeviceIndex(0),),
        vram_used_bytes=20_000 * MIB,
    )
    mule = msgspec.structs.replace(gpu_node("mule", 24_000), replicas={WIDE: part})
    models = Catalogue(
        profiles={
            **wide("beast", "mule").profiles,
            MODELS[0]: Profile(id=MODELS[0], harness="simulated", vram_mb=10_000),
        }
    )
    state = fleet(mule)
    case = Case(state=state, catalogue=models, now=NOW)

    step = make_room(state, models, MODELS[0], NOW)
    draining = Draining(
        catalogue=models, policy=DEFAULT_POLICY, rates=NO_RATES, demanded=(), now=NOW
    )
    (departure,) = departures(state, NodeName("mule"), draining)

    assert isinstance(step, Hold)
    assert candidates(case, models.profiles[MODELS[0]], mule)[0] == []
    assert (departure.outcome, "its head is another node" in departure.reason) == ("stays", True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nodes": ("a",)}, "two or more"),
        ({"nodes": ("a", "a")}, "each once"),
        ({"nodes": ("a", "b"), "min_devices": 3}, "multiple"),
        ({"nodes": ("a", "b"), "min_devices": 2, "pinned_on": ("b",)}, "pinned_on"),
    ],
)
def test_impossible_group_stops_the_start(fields: dict[str, object], words: str) -> None:
    """Ours: with the place in the file and what would be right."""
    profile = msgspec.structs.replace(Profile(id=WIDE, harness="simulated"), **fields)

    with pytest.raises(SettingsError, match=words):
        Catalogue.from_file(CatalogueFile(models=(profile,)), "models.toml")
