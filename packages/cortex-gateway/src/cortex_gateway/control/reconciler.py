"""Bring the fleet nearer to what callers wait for: have done what `plan` decides."""

import asyncio
import math
from collections.abc import Coroutine
from functools import partial

from cortex_core.errors import RequestError
from cortex_core.fleet.reducers import with_command, with_recycling, with_swap, with_unloads
from cortex_core.fleet.state import NodeHealth
from cortex_core.ids import NodeName
from cortex_core.placement.case import Case
from cortex_core.placement.idle import next_idle_end
from cortex_core.placement.plan import open_wishes, plan
from cortex_core.placement.steps import Evict, Hold, Load, Recycle, Retire, Step, Wake
from cortex_core.server.clock import Clock
from cortex_gateway.control.commands import Commands
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore

REST_RATIO = 9.0
"""How long the next plan waits, by what the last one took: a tenth of the time goes to planning
at most."""


class Reconciler:
    """Plans with every change, and starts what is planned.

    Args:
        store: the fleet.
        commands: does what is decided.
        journal: where steps are noted.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, store: FleetStore, commands: Commands, journal: Journal, clock: Clock
    ) -> None:
        self._store = store
        self._journal = journal
        self._commands = commands
        self._clock = clock
        self._running: dict[asyncio.Task[object], NodeName] = {}
        self._alarms: list[float] = []
        """When something changes with time alone."""

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._drop_lost()
                began = self._clock.now()
                self._start(tasks)
                took_s = self._clock.now() - began
                await self._wait()
                # With a thousand nodes there is news all the time, and planning takes a while.
                await self._clock.sleep(took_s * REST_RATIO)

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        store, now, wishes = self._store, self._clock.now(), self._store.wishes()
        steps = plan(
            store.state,
            store.catalogue,
            store.take_demanded(),
            now,
            policy=store.policy,
            rates=store.rates(now),
            waiting=store.waiting(),
            request_times=store.request_times(),
            wishes=wishes,
        )
        store.keep_wishes(wishes, open_wishes(store.state, wishes, steps))
        for step in steps:
            self._begin(tasks, step)
        self._alarms = [s.retry_at for s in steps if isinstance(s, Hold) and s.retry_at is not None]

    def _begin(self, tasks: asyncio.TaskGroup, step: Step) -> None:
        commands, store, run = self._commands, self._store, self._run
        self._journal.step(step)
        match step:
            case Load(replica=replica, command=command):
                store.update(partial(with_command, replica=replica, command=command))
                run(tasks, step, replica.node, commands.load(step), f"load {replica}")
            case Evict(model=model, swap=swap):
                store.update(partial(with_swap, model=model, swap=swap))
                name = f"make room for {model} on {swap.node}"
                run(tasks, step, swap.node, commands.make_room(step), name)
            case Retire(replica=replica):
                store.update(partial(with_unloads, replicas=(replica,)))
                run(tasks, step, replica.node, commands.retire(step), f"unload {replica}")
            case Wake(replica=replica, command=command):
                store.update(partial(with_command, replica=replica, command=command))
                run(tasks, step, replica.node, commands.wake(step), f"wake {replica}")
            case Recycle(node=node):
                store.update(partial(with_recycling, name=node))
                run(tasks, step, node, commands.recycle(step), f"recycle {node}")
            case Hold():
                pass

    def _run(
        self,
        tasks: asyncio.TaskGroup,
        step: Step,
        node: NodeName,
        work: Coroutine[None, None, RequestError | None],
        name: str,
    ) -> None:
        task = tasks.create_task(self._journal.follow(step, work), name=name)
        self._running[task] = node
        task.add_done_callback(self._running.__delitem__)

    def _drop_lost(self) -> None:
        """Forget commands to nodes that are down or taken out: their answers may never come.

        A node that comes back reports a load itself, if it still goes on.
        """
        for task, node in self._running.items():
            known = self._store.state.nodes.get(node)
            if known is None or known.health is NodeHealth.DOWN:
                task.cancel()

    async def _wait(self) -> None:
        """Wait for demand, for a change, or until time alone changes what is to be done."""
        state, now = self._store.state, self._clock.now()
        demanded = self._store.demanded()
        alarms = [*self._alarms]
        alarms += [
            failure.retry_at
            for target, failure in state.failures.items()
            if target.model in demanded
        ]
        case = Case(
            state=state, catalogue=self._store.catalogue, policy=self._store.policy, now=now
        )
        alarms.append(next_idle_end(case))
        pauses = [alarm - now for alarm in alarms if now < alarm < math.inf]
        async with asyncio.TaskGroup() as tasks:
            alarm = tasks.create_task(self._ring(min(pauses))) if pauses else None
            await self._store.wanted()
            if alarm is not None:
                alarm.cancel()

    async def _ring(self, pause_s: float) -> None:
        await self._clock.sleep(pause_s)
        self._store.reconsider()
