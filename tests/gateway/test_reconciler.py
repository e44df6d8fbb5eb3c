"""How demand becomes a load, over real sockets."""

import asyncio
import contextlib

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import NodeHealth
from cortex_core.fleet.views import model_list
from cortex_core.ids import NodeName, ReplicaId
from cortex_core.replica import ReplicaStatus
from cortex_gateway.metrics import GatewayMetrics
from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.fleet import (
    HASTY,
    MODEL,
    NODE,
    PROFILE,
    QuickClock,
    control_of,
    has_status,
    is_health,
    until,
    until_true,
)

REPLICA = ReplicaId(node=NODE, model=MODEL)


async def test_many_waiters_cause_one_load() -> None:
    """Ours: one load serves all who wait, before, while and after it runs."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with contextlib.ExitStack() as waiters:
            for _ in range(20):
                waiters.enter_context(store.demand(MODEL))
            await until_true(lambda: bool(neuron.loads))
            for _ in range(20):
                waiters.enter_context(store.demand(MODEL))
            await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADING))
            neuron.load_may_end.set()
            await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
            await until(store, lambda state: not state.commands)

    assert len(neuron.loads) == 1
    assert store.demanded() == frozenset()


async def test_load_of_a_given_neuron_is_sent_once_although_it_shows_nothing_meanwhile() -> None:
    """Ours: between the answer and the report that shows the model, the load stays noted."""
    neuron = FakeNeuron(is_given_only=True)

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with store.demand(MODEL):
            await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
            await until(store, lambda state: not state.commands)

    assert len(neuron.loads) == 1


async def test_load_is_noted_while_its_answer_is_awaited() -> None:
    """Ours: routing says where it is being loaded, and its memory counts as taken."""
    neuron = FakeNeuron(is_given_only=True)
    neuron.load_may_end.clear()

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with store.demand(MODEL):
            await until_true(lambda: bool(neuron.loads))
            noted = dict(store.state.commands)

    assert noted.keys() == {REPLICA}
    assert noted[REPLICA].devices == (0,)


async def test_load_says_what_the_catalogue_says() -> None:
    """Contract: `/models/load`; what is not set is left out, as an older neuron may refuse it."""
    neuron = FakeNeuron()
    entry = msgspec.structs.replace(
        PROFILE, vram_mb=8000, quant="awq", engine={"max_model_len": 4096}
    )

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[entry]) as store:
        with store.demand(MODEL):
            await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))

    assert neuron.loads == [
        {
            "model_id": MODEL,
            "harness": "simulated",
            "quant": "awq",
            "devices": [0],
            "engine": {"max_model_len": 4096},
            "vram_mb": 8000,
            "automatic": True,
        }
    ]


async def test_load_goes_on_when_nobody_waits_any_more() -> None:
    """Ours: a load is finished, not repeated."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with store.demand(MODEL):
            await until_true(lambda: bool(neuron.loads))
        neuron.load_may_end.set()
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))

    assert len(neuron.loads) == 1


async def test_failed_load_cools_down_and_its_reason_is_listed() -> None:
    """Ours: the reason is the neuron's first line; nothing is sent again for five seconds."""
    neuron = FakeNeuron()
    neuron.load_error = (507, {"error": {"message": "needs 9 MiB, free are 5\n  at x.rs:3"}})
    catalogue = Catalogue(profiles={MODEL: PROFILE})

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with store.demand(MODEL):
            state = await until(store, lambda state: REPLICA in state.failures)
            # Each of these wakes the reconciler, which plans again and finds the cool-down.
            for _ in range(3):
                revision = store.state.revision
                neuron.tell_health()
                await store.changed(revision)
        listed = model_list(state, catalogue, created=0).data[0]

    assert len(neuron.loads) == 1
    failure = state.failures[REPLICA]
    assert (failure.reason, failure.failures) == ("needs 9 MiB, free are 5", 1)
    assert not state.commands
    assert listed.reason == "the last load on beast failed: needs 9 MiB, free are 5"


async def test_load_is_tried_again_when_the_cool_down_ends() -> None:
    """Ours: who still waits then need not ask again; five seconds, here a twentieth."""
    neuron = FakeNeuron()
    neuron.load_error = (500, {"error": "no luck"})

    async with (
        running(neuron),
        control_of({NODE: neuron.url}, profiles=[PROFILE], clock=QuickClock(100)) as store,
    ):
        with store.demand(MODEL):
            await until(store, lambda state: REPLICA in state.failures)
            neuron.load_error = None
            state = await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))

    assert len(neuron.loads) == 2
    assert not state.failures


async def test_load_on_a_node_that_went_down_is_given_up_and_placed_elsewhere() -> None:
    """Ours: an answer that may never come blocks nothing."""
    first, second = FakeNeuron(), FakeNeuron()
    first.load_may_end.clear()

    async with running(first), running(second):
        # Of equal nodes the first name is chosen.
        endpoints = {"a": first.url, "b": second.url}
        async with control_of(endpoints, profiles=[PROFILE], patience=HASTY) as store:
            await until(store, is_health("b", NodeHealth.UP))
            await until(store, lambda state: all(n.facts for n in state.nodes.values()))
            with store.demand(MODEL):
                await until_true(lambda: bool(first.loads))
                first.freeze()
                await until(store, has_status("b", MODEL, ReplicaStatus.LOADED))
                state = await until(store, lambda state: not state.commands)

    assert state.nodes[NodeName("a")].health is NodeHealth.DOWN
    assert len(second.loads) == 1


async def test_load_that_fails_without_a_proper_error_has_a_reason_too() -> None:
    """Ours: the given neuron's errors are plain strings."""
    neuron = FakeNeuron(is_given_only=True)
    neuron.load_error = (500, {"error": "engine core died"})

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with store.demand(MODEL):
            state = await until(store, lambda state: REPLICA in state.failures)

    assert state.failures[REPLICA].reason == "engine core died"


async def test_neuron_that_dies_of_a_load_is_not_asked_again_at_once() -> None:
    """Ours: a cut connection is a failed load; its reason names no address."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    neuron.cuts_loads = True

    async with running(neuron), control_of({NODE: neuron.url}, profiles=[PROFILE]) as store:
        with store.demand(MODEL):
            await until_true(lambda: bool(neuron.loads))
            neuron.load_may_end.set()
            state = await until(store, lambda state: REPLICA in state.failures)

    assert state.failures[REPLICA].reason == "beast cut the connection"


async def test_loads_are_measured() -> None:
    """Contract: `cortex_load_seconds`."""
    registry = CollectorRegistry()
    neuron = FakeNeuron()

    async with (
        running(neuron),
        control_of(
            {NODE: neuron.url}, profiles=[PROFILE], metrics=GatewayMetrics(registry)
        ) as store,
    ):
        with store.demand(MODEL):
            await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
            await until(store, lambda state: not state.commands)

    labels = {"model": MODEL, "node": NODE}
    assert registry.get_sample_value("cortex_load_seconds_count", labels) == 1


async def test_shutdown_ends_a_load_under_way() -> None:
    """Ours: the gateway goes down although a neuron never answers."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()

    async with (
        asyncio.timeout(5),
        running(neuron),
        control_of({NODE: neuron.url}, profiles=[PROFILE]) as store,
    ):
        with store.demand(MODEL):
            await until_true(lambda: bool(neuron.loads))

    assert not store.state.commands
