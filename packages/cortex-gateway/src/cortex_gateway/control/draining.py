"""A node that is drained: cordoned, then emptied without anybody who uses a model noticing."""

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec

from cortex_core.errors import RequestError
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.drain import Draining, departures
from cortex_core.server.clock import Clock
from cortex_core.wire.admin import Action, Departure, DrainAnswer
from cortex_gateway.control.loading import Loading
from cortex_gateway.control.operations import Operations
from cortex_gateway.control.store import FleetStore


class Drainage:
    """Empties nodes.

    Args:
        store: the fleet.
        operations: cordons, and unloads.
        loading: loads elsewhere what is in use.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, store: FleetStore, operations: Operations, loading: Loading, clock: Clock
    ) -> None:
        self._store = store
        self._operations = operations
        self._loading = loading
        self._clock = clock

    async def drain(self, node: NodeName, *, dry_run: bool) -> DrainAnswer:
        """Cordon a node and empty it; returns when everything has left that could.

        What was begun goes on although this is cancelled, so that asking again waits for the rest.

        Raises:
            RequestError: there is no such node, or it cannot be cordoned.
        """
        await self._operations.cordon(node, is_cordoned=True, dry_run=dry_run)
        found = self._departures(node)
        if not dry_run:
            found = await self._operations.run(self._empty(node, found), f"drain {node}")
        is_empty = all(departure.outcome != "stays" for departure in found)
        return DrainAnswer(node=node, drained=is_empty, dry_run=dry_run, models=found)

    def _departures(self, node: NodeName) -> tuple[Departure, ...]:
        store, now = self._store, self._clock.now()
        case = Draining(
            catalogue=store.catalogue,
            policy=store.policy,
            rates=store.rates(now),
            demanded=store.demanded(),
            now=now,
        )
        return departures(store.state, node, case)

    async def _empty(self, node: NodeName, planned: tuple[Departure, ...]) -> tuple[Departure, ...]:
        """Do what is planned, all at once: each waits for its own load and its own requests.

        A base waits for its adapters as well, as they go when it does.
        """
        there = self._store.state.nodes[node].replicas
        bases = {model: replica.base for model, replica in there.items()}
        work: dict[ModelId, asyncio.Task[Departure]] = {}
        async with asyncio.TaskGroup() as tasks:
            # Adapters first, so that a base finds the tasks of its own.
            for departure in sorted(planned, key=lambda one: bases.get(one.model) is None):
                model = departure.model
                after = [task for name, task in work.items() if bases.get(name) == model]
                work[model] = tasks.create_task(self._leave(node, departure, after))
        return tuple(work[departure.model].result() for departure in planned)

    async def _leave(
        self, node: NodeName, planned: Departure, after: Sequence[asyncio.Task[Departure]]
    ) -> Departure:
        if planned.outcome == "stays":
            return planned
        try:
            if planned.to is not None:
                await self._load(planned.model, planned.to)
            if after:
                await asyncio.wait(after)
            await self._operations.act(Action.UNLOAD, ReplicaId(node=node, model=planned.model))
        except RequestError as error:
            return msgspec.structs.replace(planned, outcome="stays", reason=error.message)
        return planned

    async def _load(self, model: ModelId, node: NodeName) -> None:
        """Return when the model serves on the node.

        Raises:
            RequestError: why it does not.
        """
        async with contextlib.aclosing(self._loading.follow(model, node)) as news:
            async for _ in news:
                pass
