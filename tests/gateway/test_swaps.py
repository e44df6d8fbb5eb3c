"""How room is made for a model, over real sockets."""

import asyncio

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.catalogue import Profile
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.route import Refuse, RouteHints, route
from cortex_gateway.metrics import GatewayMetrics
from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.fleet import NODE, control_of, has_status, until, until_true

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
