"""How urgent a request is goes through to the engine that can tell."""

import asyncio

from cortex_core.harness import Engine, ModelSpec, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines.adapted import AdapterEngine
from neuron.supervisor.grouped import LeadingEngine
from tests.fakes.clock import settle
from tests.fakes.harness import FakeEngine


async def nothing() -> None:
    """Do nothing."""


async def test_views_of_an_engine_pass_it_on() -> None:
    """Ours: an adapter and the head of a copy are scheduled as their engine schedules."""
    inner = FakeEngine(ModelSpec(model=ModelId("a"), harness="fake"), None)
    lost = asyncio.get_running_loop().create_future()
    views: list[Engine] = [
        AdapterEngine(ModelId("b"), inner, check=nothing, remove=nothing),
        LeadingEngine(inner, lost, nothing),
    ]
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for urgency, view in zip((1, -1), views, strict=True):
            tasks.create_task(view.serve(Route.COMPLETIONS, b"", RequestId("r"), urgency))
            await settle()
            inner.answer()

    assert inner.urgencies == [1, -1]
