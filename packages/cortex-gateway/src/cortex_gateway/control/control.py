"""The control half as one thing: what it knows, and what operators have it do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from cortex_core.server.clock import Clock
from cortex_gateway.control.commands import Commands
from cortex_gateway.control.draining import Drainage
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.learning import Learning
from cortex_gateway.control.loading import Loading
from cortex_gateway.control.operations import Operations
from cortex_gateway.control.roster import Roster
from cortex_gateway.control.store import FleetStore


class Control(NamedTuple):
    """The fleet with everything that acts on it."""

    store: FleetStore
    roster: Roster
    operations: Operations
    loading: Loading
    drainage: Drainage


@asynccontextmanager
async def open_control(
    store: FleetStore,
    roster: Roster,
    commands: Commands,
    *,
    journal: Journal,
    clock: Clock,
    load_limit_s: Callable[[], float],
) -> AsyncIterator[Control]:
    """Yield what operators need; what they have begun ends with the context.

    Args:
        store: the fleet.
        roster: its nodes.
        commands: does what is decided.
        journal: where what operators do is noted.
        clock: monotonic seconds.
        load_limit_s: returns how long a load may take in all.
    """
    async with Operations(
        store=store, clients=roster.clients, journal=journal, clock=clock
    ) as operations:
        loading = Loading(
            store=store,
            commands=commands,
            operations=operations,
            journal=journal,
            clock=clock,
            limit_s=load_limit_s,
        )
        learning = Learning(store=store, operations=operations, clock=clock)
        drainage = Drainage(store=store, operations=operations, loading=loading, clock=clock)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(learning.run(), name="learning")
            yield Control(store, roster, operations, loading, drainage)
            task.cancel()
