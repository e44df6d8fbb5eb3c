"""What was wanted once is not wanted for ever: nobody brings back what an operator sent off.

The reconciler rests after each plan, and what happens meanwhile waits for it. Here the test says
how long it rests.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cortex_core.catalogue import Profile
from cortex_core.errors import ModelLoadingError
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.replica import ReplicaStatus
from cortex_core.wire.admin import Action, ModelCommand
from cortex_gateway.control.control import Control
from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.fleet import NEVER, NODE, has_status, operated, until, until_true

A, B = ModelId("org/a"), ModelId("org/b")
B_THERE = ReplicaId(node=NODE, model=B)


class RestingClock:
    """A clock at a standstill: a plan takes no time, the rest after it what the test says."""

    def __init__(self) -> None:
        self.rests = 0
        """How many plans were made."""
        self.may_plan = asyncio.Event()
        self.may_plan.set()

    def now(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 1_000_000_000.0

    async def sleep(self, seconds: float) -> None:
        if seconds:
            await asyncio.Event().wait()
        self.rests += 1
        await self.may_plan.wait()

    async def rest(self, control: Control) -> None:
        """Return when the reconciler rests, which it does until `plan`."""
        self.may_plan.clear()
        await self._planned(control)

    async def plan(self, control: Control) -> None:
        """Return when a plan was made of all that happened meanwhile."""
        self.may_plan.set()
        await self._planned(control)

    async def _planned(self, control: Control) -> None:
        before = self.rests
        control.store.reconsider()
        await until_true(lambda: self.rests > before)


@asynccontextmanager
async def fleet(neuron: FakeNeuron) -> AsyncIterator[tuple[Control, RestingClock]]:
    """Run a gateway whose node holds `A` and has room for one, and have it rest."""
    clock = RestingClock()
    neuron.set_model(A, "loaded", vram_used_mb=20_000)
    big = [Profile(id=model, harness="simulated", vram_mb=20_000) for model in (A, B)]
    async with (
        running(neuron),
        operated(
            {NODE: neuron.url},
            profiles=big,
            pace=NEVER,
            clock=clock,
            policy=EvictionPolicy(min_residency_s=0.0),
        ) as control,
    ):
        await until(control.store, has_status(NODE, A, ReplicaStatus.LOADED))
        await clock.rest(control)
        yield control, clock


async def test_room_made_for_an_operator_brings_nothing_back() -> None:
    """Ours: a load by hand that made room is over when the model is there."""
    neuron = FakeNeuron()
    async with fleet(neuron) as (control, clock):
        await control.loading.load(B, NODE)
        # By another hand than ours, of which the gateway is not told beforehand.
        neuron.set_model(B, "unloaded")
        await until(control.store, lambda state: B not in state.nodes[NODE].replicas)
        await clock.plan(control)

    assert [body["model_id"] for body in neuron.loads] == [B]


@pytest.mark.parametrize("node", [NODE, None])
async def test_a_caller_who_left_brings_nothing_back_that_an_operator_unloads(
    node: str | None,
) -> None:
    """Ours: an operator's word is newer than the wish of a caller whose time was up."""
    neuron = FakeNeuron()
    async with fleet(neuron) as (control, clock):
        with pytest.raises(ModelLoadingError), control.store.demand(B):
            raise ModelLoadingError("its time was up")
        asked = ModelCommand(node=None if node is None else NODE)
        await control.operations.perform(Action.UNLOAD, B, asked)
        await clock.plan(control)

    assert (neuron.loads, neuron.unloads) == ([], [])


async def test_a_caller_who_waits_still_has_what_an_operator_unloads_brought() -> None:
    """Ours: whoever waits is served, whatever was said of the model before."""
    neuron = FakeNeuron()
    async with fleet(neuron) as (control, clock):
        with control.store.demand(B):
            await control.operations.perform(Action.UNLOAD, B, ModelCommand())
            await clock.plan(control)
            await until(control.store, has_status(NODE, B, ReplicaStatus.LOADED))

    assert [body["model_id"] for body in neuron.loads] == [B]


@pytest.mark.parametrize(
    ("model", "kept"), [(A, (B_THERE,)), (B, ())], ids=["another model", "the model"]
)
async def test_a_wish_for_a_node_ends_when_an_operator_unloads_the_model_there(
    model: ModelId, kept: tuple[ReplicaId, ...]
) -> None:
    async with fleet(FakeNeuron()) as (control, _):
        control.store.want_on(B_THERE)
        await control.operations.perform(Action.UNLOAD, model, ModelCommand(node=NODE))

        assert control.store.wishes() == kept


async def test_a_rehearsal_of_an_unload_forgets_nothing() -> None:
    async with fleet(FakeNeuron()) as (control, _):
        control.store.want_on(B_THERE)
        await control.operations.perform(Action.UNLOAD, B, ModelCommand(dry_run=True))

        assert control.store.wishes() == (B_THERE,)
