"""What holds of every plan, whatever the fleet, the catalogue and the wishes."""

from collections.abc import Iterable

import msgspec
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import with_command, with_recycling, with_swap, with_unloads
from cortex_core.fleet.sizes import estimated, sized
from cortex_core.fleet.state import FleetState, Way
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.fit import free_bytes, shares
from cortex_core.placement.host import can_sleep, host_bytes, host_free_bytes
from cortex_core.placement.place import find_room
from cortex_core.placement.plan import open_wishes, plan
from cortex_core.placement.policy import EvictionPolicy, Strategy, priority_of
from cortex_core.placement.steps import Evict, Hold, Load, Recycle, Retire, Step, Wake
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.explain import Outcome, explain
from tests.core.lively import MODELS, NODES, NOW, catalogues, fleets

policies = st.builds(
    EvictionPolicy,
    strategy=st.sampled_from(Strategy),
    min_residency_s=st.sampled_from([0.0, 0.0, 30.0]),
    idle_unload_s=st.sampled_from([None, 10.0]),
    defrag_after_cycles=st.sampled_from([0, 50]),
)


class World(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet, and what is wanted of it."""

    state: FleetState
    catalogue: Catalogue
    demand: tuple[ModelId, ...]
    waiting: dict[ModelId, int]
    wishes: tuple[ReplicaId, ...]
    policy: EvictionPolicy
    rates: dict[ModelId, float]

    @property
    def wanted(self) -> set[ModelId]:
        return {*self.demand, *self.waiting}

    def plan(self, state: FleetState) -> tuple[Step, ...]:
        return plan(
            state,
            self.catalogue,
            self.demand,
            NOW,
            policy=self.policy,
            rates=self.rates,
            waiting=self.waiting,
            wishes=self.wishes,
        )

    def case(self, state: FleetState) -> Case:
        return Case(state=state, catalogue=self.catalogue, now=NOW, policy=self.policy)


models = st.sampled_from(MODELS)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    state = draw(fleets())
    spots = st.builds(ReplicaId, node=st.sampled_from(NODES), model=models)
    return World(
        state=state,
        catalogue=draw(catalogues()),
        demand=tuple(draw(st.lists(models, unique=True, min_size=1, max_size=5))),
        waiting=draw(st.dictionaries(models, st.integers(1, 500), max_size=3)),
        wishes=tuple(draw(st.lists(spots, unique=True, max_size=2))),
        policy=draw(policies),
        rates=draw(st.dictionaries(models, st.floats(0, 5), max_size=3)),
    )


def noted(state: FleetState, step: Step) -> FleetState:
    """Return the fleet as it is once a step is begun."""
    match step:
        case Load(replica=replica, command=command) | Wake(replica=replica, command=command):
            return with_command(state, replica, command)
        case Evict(model=model, swap=swap):
            return with_swap(state, model, swap)
        case Retire(replica=replica):
            return with_unloads(state, (replica,))
        case Recycle(node=node):
            return with_recycling(state, node)
        case Hold():
            return state


def walked(world: World) -> Iterable[tuple[FleetState, Step]]:
    """Yield each step with the fleet as it was before it."""
    state = world.state
    for step in world.plan(state):
        yield state, step
        state = noted(state, step)


@given(worlds())
def test_planning_again_gives_nothing_new(world: World) -> None:
    """Architecture: idempotent; commands in flight plan to nothing."""
    state = world.state
    for step in world.plan(state):
        state = noted(state, step)

    again = world.plan(state)

    assert not [step for step in again if not isinstance(step, Hold)]


@given(worlds())
def test_a_device_is_never_over_committed(world: World) -> None:
    """Issue: what is loaded or woken fits in what is free, or in what gives way."""
    for state, step in walked(world):
        match step:
            case Load(replica=replica, command=command) | Wake(replica=replica, command=command):
                free = free_bytes(state, world.catalogue, state.nodes[replica.node])
                share = (command.vram_bytes or 0) // max(1, len(command.devices))
                assert all(free[index] >= share for index in command.devices)
            case Evict(swap=swap):
                node = state.nodes[swap.node]
                free = dict(free_bytes(state, world.catalogue, node))
                for victim in swap.replicas:
                    replica_ = node.replicas[victim.model]
                    profile = world.catalogue.profiles[victim.model]
                    held = shares(node, replica_, profile) if replica_.holds_memory else {}
                    for index, size in held.items():
                        free[index] = free.get(index, 0) + size
                assert all(free[index] >= swap.share_bytes for index in swap.devices)
            case _:
                pass


@given(worlds())
def test_host_memory_is_never_over_committed(world: World) -> None:
    """Issue: host RAM is a budget too; who sleeps there fits, with the help of who leaves."""
    for state, step in walked(world):
        if not isinstance(step, Evict):
            continue
        node, case = state.nodes[step.swap.node], world.case(state)
        free = host_free_bytes(case, node)
        for victim in step.swap.victims:
            replica = node.replicas[victim.replica.model]
            if replica.status is ReplicaStatus.SLEEPING:
                assert victim.way is Way.UNLOAD
                free += host_bytes(case, node, replica)
            elif victim.way is Way.SLEEP_1:
                profile = world.catalogue.profiles[victim.replica.model]
                free -= sum(shares(node, replica, profile).values())
            if victim.way is not Way.UNLOAD:
                assert can_sleep(node, replica)
        assert free >= 0 or all(v.way is not Way.SLEEP_1 for v in step.swap.victims)


@given(worlds())
def test_who_gives_way_may(world: World) -> None:
    """Issue: pinned never, higher priority never, nobody twice, and only what is in the catalogue."""
    for state, step in walked(world):
        if not isinstance(step, Evict):
            continue
        node, wanting = state.nodes[step.swap.node], world.catalogue.profiles[step.model]
        assert len(set(step.swap.replicas)) == len(step.swap.replicas)
        for victim in step.swap.replicas:
            replica, profile = node.replicas[victim.model], world.catalogue.profiles[victim.model]
            assert replica.status in (ReplicaStatus.LOADED, ReplicaStatus.SLEEPING)
            assert not replica.is_pinned
            assert node.name not in profile.pinned_on
            assert priority_of(profile) <= priority_of(wanting)
            assert victim not in state.unloads
            assert victim.model != step.model
            since = node.residents[victim.model].since
            stays = since + world.policy.min_residency_s
            assert replica.status is ReplicaStatus.SLEEPING or stays <= NOW
        # What is asked for while it sleeps is never dropped so that another can sleep.
        asleep = {v.model for v in step.swap.replicas
                  if node.replicas[v.model].status is ReplicaStatus.SLEEPING}  # fmt: skip
        assert not asleep & world.wanted


@given(worlds())
def test_kept_copies_yield_only_to_higher_priority(world: World) -> None:
    """Ours: else two models that are both to be kept push each other out for ever."""
    for state, step in walked(world):
        if isinstance(step, Evict):
            wanting = world.catalogue.profiles[step.model]
            for victim in step.swap.replicas:
                profile = world.catalogue.profiles[victim.model]
                left = world.case(state).copies(victim.model) - {victim.node}
                was_copy = state.nodes[victim.node].replicas[victim.model].is_servable
                if was_copy and len(left) < profile.replicas.min:
                    assert priority_of(profile) < priority_of(wanting)
        elif isinstance(step, Retire):
            profile = world.catalogue.profiles[step.replica.model]
            left = world.case(state).copies(step.replica.model) - {step.replica.node}
            replica = state.nodes[step.replica.node].replicas[step.replica.model]
            assert len(left) >= profile.replicas.min or not replica.is_servable


@given(worlds())
def test_a_node_that_takes_nothing_is_given_nothing(world: World) -> None:
    """Ours: a cordoned node wakes what sleeps there, and takes no more."""
    for state, step in walked(world):
        if isinstance(step, Evict):
            target = ReplicaId(node=step.swap.node, model=step.model)
        elif isinstance(step, Load | Wake):
            target = step.replica
        else:
            continue
        node = state.nodes[target.node]
        replica = node.replicas.get(target.model)
        is_asleep = replica is not None and replica.status is ReplicaStatus.SLEEPING
        assert node.takes_work
        assert is_asleep or not node.is_cordoned
        assert isinstance(step, Evict) or isinstance(step, Wake) is is_asleep
        assert target not in state.commands
        assert state.recycling != node.name


@given(worlds())
def test_there_are_never_more_copies_than_wanted(world: World) -> None:
    """Issue: replicas {min, max}; what operators wish for is theirs to count."""
    wished = {wish.model for wish in world.wishes}
    for state, step in walked(world):
        if isinstance(step, Load | Wake):
            model = step.replica.model
        elif isinstance(step, Evict):
            model = step.model
        else:
            continue
        profile = world.catalogue.profiles[model]
        assert len(world.case(state).copies(model)) < profile.replicas.max or model in wished


@given(worlds())
def test_a_node_is_recycled_only_while_nobody_misses_it(world: World) -> None:
    """Issue: one node at a time, never while it is the only home of a model in use."""
    recycled = 0
    for state, step in walked(world):
        if not isinstance(step, Recycle):
            continue
        recycled += 1
        node = state.nodes[step.node]
        assert (node.cycles or 0) >= world.policy.defrag_after_cycles > 0
        assert step.node not in state.commands_at
        for model, replica in node.replicas.items():
            assert not replica.is_busy
            assert replica.status not in UNDER_WAY
            others = [
                other
                for where, other in state.replicas_of(model)
                if where.name != node.name and where.takes_work and other.is_servable
            ]
            assert others or model not in world.wanted
    assert recycled <= 1


@given(worlds())
def test_a_wish_is_kept_only_while_time_may_grant_it(world: World) -> None:
    """Ours: an operator's wish is not forgotten, and not tried for ever."""
    steps = world.plan(world.state)
    kept = open_wishes(world.state, world.wishes, steps)

    assert set(kept) <= set(world.wishes)
    granted = {step.replica for step in steps if isinstance(step, Load | Wake)}
    assert not granted & set(kept)
    refused = {
        ReplicaId(node=step.only, model=step.model)
        for step in steps
        if isinstance(step, Hold) and step.only is not None and step.retry_at is None
    }
    assert not {wish for wish in refused & set(kept) if wish.model not in world.state.swaps}


@given(worlds(), models)
def test_sizes_are_what_the_node_measured(world: World, model: ModelId) -> None:
    """Issue: estimates come from the catalogue, then from what loads on that node measured."""
    profile = world.catalogue.profiles.get(model)
    for node in world.state.nodes.values():
        if profile is None:
            continue
        here = sized(world.state, estimated(world.state, profile), node)
        known = node.measured.get(model)
        failure = world.state.failures.get(ReplicaId(node=node.name, model=model))
        if failure is not None:
            assert (here.vram_bytes or 0) >= failure.needed_bytes
        elif known is not None and known.vram_bytes is not None:
            assert 0 <= (here.vram_bytes or 0) - known.vram_bytes < 1 << 20
        elif profile.vram_mb is not None:
            assert here.vram_mb == profile.vram_mb


@given(worlds(), models)
def test_what_is_told_is_what_would_be_done(world: World, model: ModelId) -> None:
    """Issue: the same code decides and explains; also asleep, and with who gives way how."""
    case = msgspec.structs.replace(world.case(world.state), rates=world.rates)
    found = explain(
        world.state, world.catalogue, model, policy=world.policy, rates=world.rates, now=NOW
    )
    step = find_room(case, model)

    if found.outcome in (Outcome.SERVE, Outcome.COMING, Outcome.WAIT):
        return
    match step:
        case Wake(replica=replica):
            assert (found.outcome, found.node) == (Outcome.WAKE, replica.node)
        case Load(replica=replica):
            assert (found.outcome, found.node) == (Outcome.LOAD, replica.node)
        case Evict(swap=swap):
            assert (found.outcome, found.node) == (Outcome.EVICT, swap.node)
            assert found.victims == tuple(victim.model for victim in swap.replicas)
        case Hold(retry_at=retry_at):
            assert found.outcome is Outcome.REFUSE
            assert retry_at is None
