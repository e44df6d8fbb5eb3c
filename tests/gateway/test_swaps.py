"""How room is made for a model, over real sockets."""

import asyncio

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.catalogue import Profile, Replicas
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.route import Refuse, RouteHints, route
from cortex_gateway.metrics import GatewayMetrics
from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.fleet import NODE, QuickClock, control_of, has_status, until, until_true

A, B = ModelId("org/a"), ModelId("org/b")
PROFILES = [Profile(id=model, harness="simulated", vram_mb=20_000) for model in (A, B)]
AT_ONCE = EvictionPolicy(min_residency_s=0.0)


def holding(model: ModelId) -> FakeNeuron:
    neuron = FakeNeuron()
    neuron.set_model(model, "loaded", vram_used_mb=20_000)
    return neuron


async def test_a_model_gives_way_and_comes_back() -> None:
    """Issue: A, B, A with room for one: each time the other one is unloaded first."""
    neuron = holding(A)
    registry = CollectorRegistry()
    async with (
        running(neuron),
        control_of(
            {NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE, metrics=GatewayMetrics(registry)
        ) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        for model in (B, A):
            with store.demand(model):
                await until(store, has_status(NODE, model, ReplicaStatus.LOADED))
                await until(store, lambda state: not state.commands and not state.swaps)

    assert neuron.unloads == [
        {"model_id": model, "drain_timeout_s": AT_ONCE.drain_s, "force": False} for model in (A, B)
    ]
    assert [body["model_id"] for body in neuron.loads] == [B, A]
    evicted = registry.get_sample_value("cortex_evictions_total", {"model": A, "node": NODE})
    assert evicted == 1


def drowsy(*models: ModelId, budget_mb: int = 64_000) -> FakeNeuron:
    """Return a neuron that can sleep, with models that are loaded."""
    neuron = FakeNeuron()
    neuron.health_fields["sleep_budget_mb"] = budget_mb
    for model in models:
        neuron.set_model(model, "loaded", vram_used_mb=20_000, capabilities={"sleep": True})
    return neuron


async def test_a_model_sleeps_to_give_way_and_is_woken() -> None:
    """Issue: tiers; A, B, A is one sleep, one load, and one wake."""
    neuron = drowsy(A)
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        for model in (B, A):
            with store.demand(model):
                await until(store, has_status(NODE, model, ReplicaStatus.LOADED))
                await until(store, lambda state: not state.commands and not state.swaps)

    slept = {"model_id": A, "level": 1, "drain_timeout_s": AT_ONCE.drain_s}
    assert neuron.commands == [("/models/sleep", slept), ("/models/wake", {"model_id": A})]
    assert [body["model_id"] for body in neuron.loads] == [B]
    # The fake says of what it loads that it cannot sleep.
    assert [body["model_id"] for body in neuron.unloads] == [B]


async def test_what_does_not_sleep_is_unloaded_and_not_asked_again() -> None:
    """Issue: say so through `capabilities` and fall back to unload; a 409 says it late."""
    neuron = drowsy(A)
    neuron.refusals["/models/sleep"] = (409, {"error": {"message": "the engine cannot sleep"}})
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        with store.demand(B):
            state = await until(store, has_status(NODE, B, ReplicaStatus.LOADED))

    assert [path for path, _ in neuron.commands] == ["/models/sleep"]
    assert [body["model_id"] for body in neuron.unloads] == [A]
    assert state.nodes[NODE].sleepless == {A}


async def test_a_sleeper_leaves_the_host_before_the_next_one_falls_asleep() -> None:
    """Issue: host RAM is a budget too."""
    neuron, third = drowsy(A, budget_mb=20_000), ModelId("org/c")
    neuron.set_model(third, "sleeping", sleep_level=1, host_used_mb=20_000)
    gone: list[bool] = []
    neuron.unload_may_end.clear()
    profiles = [*PROFILES, msgspec.structs.replace(PROFILES[0], id=third)]
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=profiles, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        store.touch(ReplicaId(node=NODE, model=A), store.state.nodes[NODE].residents[A].used + 2)
        with store.demand(B):
            await until_true(lambda: bool(neuron.unloads))
            gone.append(bool(neuron.commands))
            neuron.unload_may_end.set()
            await until(store, has_status(NODE, B, ReplicaStatus.LOADED))

    assert gone == [False]
    assert [body["model_id"] for body in neuron.unloads] == [third]
    assert [path for path, _ in neuron.commands] == ["/models/sleep"]


async def test_a_wake_that_fails_cools_down() -> None:
    """Ours: as a load does, with the reason shown."""
    neuron = drowsy()
    neuron.set_model(A, "sleeping", sleep_level=1)
    neuron.refusals["/models/wake"] = (500, {"error": {"message": "its weights are gone"}})
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.SLEEPING))
        with store.demand(A):
            state = await until(store, lambda state: bool(state.failures))

    assert state.failures[ReplicaId(node=NODE, model=A)].reason == "its weights are gone"
    assert [path for path, _ in neuron.commands] == ["/models/wake"]


async def test_what_a_neuron_says_it_needs_is_its_size_from_then_on() -> None:
    """Issue: memory truth; a 507 says what no catalogue knew, and others give way next time."""
    neuron = FakeNeuron()
    neuron.set_model(A, "loaded", vram_used_mb=10_000)
    error = {"message": "too little", "needed_bytes": 20_000 << 20, "free_bytes": 14_000 << 20}
    neuron.load_error = (507, {"error": error})
    unsized = [PROFILES[0], Profile(id=B, harness="simulated")]
    async with (
        running(neuron),
        control_of(
            {NODE: neuron.url}, profiles=unsized, policy=AT_ONCE, clock=QuickClock(100)
        ) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        with store.demand(B):
            await until(store, lambda state: bool(state.failures))
            neuron.load_error = None
            await until(store, has_status(NODE, B, ReplicaStatus.LOADED))

    assert [body["model_id"] for body in neuron.unloads] == [A]
    assert neuron.loads[0].get("vram_mb") is None
    assert neuron.loads[-1]["vram_mb"] == 20_000


async def test_a_worn_node_is_recycled_while_nobody_misses_it() -> None:
    """Issue: `defrag_after_cycles`."""
    neuron = FakeNeuron()
    neuron.health_fields["cycles"] = 50
    policy = EvictionPolicy(defrag_after_cycles=50)
    async with running(neuron), control_of({NODE: neuron.url}, policy=policy) as store:
        await until_true(lambda: bool(neuron.commands))
        state = await until(store, lambda state: state.nodes[NODE].cycles == 0)
        await until(store, lambda state: state.recycling is None)

    assert neuron.commands == [("/recycle", {})]
    assert state.nodes[NODE].recycle_after is None


async def test_a_node_that_cannot_be_recycled_is_left_in_peace() -> None:
    """Ours: an older neuron has no such path."""
    neuron = FakeNeuron()
    neuron.health_fields["cycles"] = 50
    neuron.refusals["/recycle"] = (404, {"error": {"message": "there is no such path"}})
    policy = EvictionPolicy(defrag_after_cycles=50)
    async with running(neuron), control_of({NODE: neuron.url}, policy=policy) as store:
        await until(store, lambda state: state.nodes[NODE].recycle_after is not None)
        for _ in range(3):
            before = store.state.revision
            neuron.tell_health()
            await store.changed(before)

    assert len(neuron.commands) == 1


async def test_copies_are_kept_on_nodes_of_their_own() -> None:
    """Issue: replicas = {min, max}; also where others must give way first."""
    first, second = holding(A), holding(B)
    twice = msgspec.structs.replace(PROFILES[0], replicas=Replicas(min=2, max=2))
    async with (
        running(first),
        running(second),
        control_of(
            {"one": first.url, "two": second.url}, profiles=[twice, PROFILES[1]], policy=AT_ONCE
        ) as store,
    ):
        await until(store, has_status("two", A, ReplicaStatus.LOADED))
        await until(store, lambda state: not state.commands and not state.swaps)

    assert (first.loads, first.unloads) == ([], [])
    assert [body["model_id"] for body in second.unloads] == [B]


async def test_a_wish_is_granted_on_that_very_node() -> None:
    """Issue: load with a node, although another one serves the model."""
    first, second = holding(A), holding(B)
    async with (
        running(first),
        running(second),
        control_of(
            {"one": first.url, "two": second.url}, profiles=PROFILES, policy=AT_ONCE
        ) as store,
    ):
        await until(store, has_status("two", B, ReplicaStatus.LOADED))
        await until(store, has_status("one", A, ReplicaStatus.LOADED))
        store.want_on(ReplicaId(node=NodeName("two"), model=A))
        await until(store, has_status("two", A, ReplicaStatus.LOADED))
        await until_true(lambda: not store.wishes())

    assert first.unloads == []


async def test_nothing_moves_while_nobody_asks() -> None:
    """Ours: no demand, no eviction."""
    neuron = holding(A)
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        with store.demand(A):
            for _ in range(3):
                before = store.state.revision
                neuron.tell_health()
                await store.changed(before)

    assert neuron.unloads == []


async def test_a_neuron_that_will_not_unload_is_left_in_peace_for_a_while() -> None:
    """Ours: the wish cools down, and says why; nothing is noted for ever."""
    neuron = holding(A)
    neuron.unload_error = (500, {"error": {"message": "stuck", "code": "engine_error"}})
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        with store.demand(B):
            state = await until(store, lambda state: bool(state.failures) and not state.swaps)

    failure = state.failures[ReplicaId(node=NODE, model=B)]
    assert failure.reason == "room could not be made: stuck"
    assert state.unloads == frozenset()
    decision = route(
        state, store.catalogue, B, hints=RouteHints(), in_flight={}, now=failure.retry_at - 1
    )
    assert isinstance(decision, Refuse)
    assert "stuck" in decision.error.message


async def test_nobody_gives_way_for_nothing() -> None:
    """Ours: who asked may have left meanwhile; the model is loaded for the next one."""
    neuron = holding(A)
    neuron.shows_unloads = False
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        with store.demand(B):
            await until(store, lambda state: B in state.swaps)
        await until_true(lambda: bool(neuron.unloads))
        for _ in range(3):  # plans, while nobody waits and the swap is still noted
            before = store.state.revision
            neuron.tell_health()
            await store.changed(before)
        neuron.set_model(A, "unloaded")
        await until(store, has_status(NODE, B, ReplicaStatus.LOADED))

    assert [body["model_id"] for body in neuron.unloads] == [A]


async def test_who_came_just_now_stays_for_its_turn() -> None:
    """Issue: min-residency; the reconciler comes back when the turn is over."""
    neuron = holding(A)
    policy = EvictionPolicy(min_residency_s=0.3)
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=policy) as store,
    ):
        state = await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        since = state.nodes[NODE].residents[A].since
        with store.demand(B):
            swapped = await until(store, lambda state: bool(state.swaps))
            await until(store, has_status(NODE, B, ReplicaStatus.LOADED))

    (swap,) = swapped.swaps.values()
    assert [victim.model for victim in swap.replicas] == [A]
    assert since >= 0


async def test_what_nobody_uses_is_unloaded() -> None:
    """Issue: `idle_unload_s` gives back memory that nobody uses."""
    neuron = holding(A)
    policy = EvictionPolicy(idle_unload_s=0.2)
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=PROFILES, policy=policy) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        await until_true(lambda: bool(neuron.unloads))
        state = await until(store, lambda state: not state.unloads)

    assert [body["model_id"] for body in neuron.unloads] == [A]
    assert A not in state.nodes[NODE].replicas


async def test_two_who_want_in_are_served_in_the_order_in_which_they_came() -> None:
    """Ours: the longest wait first, and what is being freed for one is nobody else's."""
    neuron = holding(A)
    third = ModelId("org/0")
    profiles = [*PROFILES, msgspec.structs.replace(PROFILES[0], id=third)]
    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=profiles, policy=AT_ONCE) as store,
    ):
        await until(store, has_status(NODE, A, ReplicaStatus.LOADED))
        async with asyncio.timeout(5):
            with store.demand(B):
                await until(store, lambda state: B in state.swaps or bool(neuron.unloads))
                with store.demand(third):
                    await until(store, has_status(NODE, B, ReplicaStatus.LOADED))

    assert neuron.loads[0]["model_id"] == B
