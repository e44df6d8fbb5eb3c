"""Load what callers wait for: perform what `plan` decides."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from cortex_core.errors import RequestError
from cortex_core.fleet.reducers import with_command, with_load_failure, without_command
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import NodeName, ReplicaId
from cortex_core.placement.plan import UNDER_WAY, Load, plan
from cortex_core.server.clock import Clock
from cortex_gateway.control.store import FleetStore
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.ports import NodeClient

logger = logging.getLogger(__name__)

REPORT_WAIT_S = 5.0
"""How long a load that was answered stays noted while no report shows the model."""


class Reconciler:
    """Sends loads, at most one at a time for each replica."""

    def __init__(
        self,
        *,
        store: FleetStore,
        clients: Mapping[NodeName, NodeClient],
        metrics: GatewayMetrics,
        clock: Clock,
    ) -> None:
        self._store = store
        self._clients = clients
        self._metrics = metrics
        self._clock = clock
        self._loads: dict[ReplicaId, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._drop_lost()
                self._start(tasks)
                await self._wait()

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        store = self._store
        for step in plan(store.state, store.catalogue, store.take_demanded(), self._clock.now()):
            if isinstance(step, Load) and step.replica not in self._loads:
                note = partial(with_command, replica=step.replica, command=step.command)
                store.update(note)
                self._loads[step.replica] = tasks.create_task(
                    self._load(step), name=f"load {step.replica}"
                )

    def _drop_lost(self) -> None:
        """Forget loads on nodes that are down: their answers may never come.

        A node that comes back reports the load itself, if it still goes on.
        """
        for replica, task in self._loads.items():
            if self._store.state.nodes[replica.node].health is NodeHealth.DOWN:
                task.cancel()

    async def _wait(self) -> None:
        """Wait for demand, for a change, or until a cool-down ends that demand waits for."""
        now = self._clock.now()
        demanded = self._store.demanded()
        pauses = [
            failure.retry_at - now
            for target, failure in self._store.state.failures.items()
            if target.model in demanded and failure.retry_at > now
        ]
        async with asyncio.TaskGroup() as tasks:
            alarm = tasks.create_task(self._ring(min(pauses))) if pauses else None
            await self._store.wanted()
            if alarm is not None:
                alarm.cancel()

    async def _ring(self, pause_s: float) -> None:
        await self._clock.sleep(pause_s)
        self._store.reconsider()

    async def _load(self, step: Load) -> None:
        replica = step.replica
        logger.info("loading %s, devices %s", replica, list(step.command.devices))
        try:
            reason = await self._perform(step)
            if reason is None:
                await self._reported(replica)
            else:
                logger.warning("loading %s failed: %s", replica, reason)
                failed = partial(
                    with_load_failure, replica=replica, reason=reason, now=self._clock.now()
                )
                self._store.update(failed)
        finally:
            del self._loads[replica]
            self._store.update(partial(without_command, replica=replica))
            self._store.refresh(replica.node)

    async def _perform(self, step: Load) -> str | None:
        """Send a load and return why it failed, or `None`."""
        began = self._clock.now()
        try:
            await self._clients[step.replica.node].load(step.request)
        except RequestError as error:
            return error.message
        except Exception:
            logger.exception("loading %s failed", step.replica)
            return "internal error"
        load_s = self._clock.now() - began
        logger.info("loaded %s in %.1f s", step.replica, load_s)
        self._metrics.loaded(model=step.replica.model, node=step.replica.node, load_s=load_s)
        return None

    async def _reported(self, replica: ReplicaId) -> None:
        """Wait until a report shows what the answer said.

        Without this, the plan would see neither a command nor a replica, and load again.
        """
        self._store.refresh(replica.node)
        try:
            async with asyncio.timeout(REPORT_WAIT_S):
                state = self._store.state
                while not _is_shown(state, replica):
                    state = await self._store.changed(state.revision)
        except TimeoutError:
            logger.warning("%s was loaded, but its node does not report it", replica)


def _is_shown(state: FleetState, replica: ReplicaId) -> bool:
    """Whether the snapshot has the replica coming or there, or its node is lost."""
    node = state.nodes[replica.node]
    known = node.replicas.get(replica.model)
    if known is None:
        return not node.is_reachable
    return known.is_servable or known.status in UNDER_WAY
