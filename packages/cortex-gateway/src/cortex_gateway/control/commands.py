"""What is asked of neurons: each command from its sending to the report that shows it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from cortex_core.errors import (
    ConflictError,
    InsufficientVramError,
    NotFoundError,
    RequestError,
    UpstreamError,
)
from cortex_core.fleet.reducers import (
    with_load_failure,
    with_sleepless,
    without_command,
    without_recycling,
    without_swap,
    without_unloads,
)
from cortex_core.fleet.state import FleetState, Swap, Victim, Way
from cortex_core.ids import NodeName, ReplicaId
from cortex_core.placement.case import UNDER_WAY
from cortex_core.placement.steps import Evict, Load, Recycle, Retire, Wake
from cortex_core.replica import ReplicaStatus
from cortex_core.server.clock import Clock
from cortex_core.wire.neuron import SleepRequest, UnloadRequest, WakeRequest
from cortex_gateway.control.store import FleetStore
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.ports import NodeClient

logger = logging.getLogger(__name__)

REPORT_WAIT_S = 5.0
"""How long a command that was answered stays noted while no report shows what it did."""

RECYCLE_RETRY_S = 600.0
"""How long a node that would not recycle its engines is left in peace."""

RETRY_S = 60.0
"""How long a replica that would not be unloaded for want of use is left in peace."""


class Commands:
    """Performs the steps of a plan; each returns when the fleet shows what came of it."""

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

    async def load(self, step: Load) -> RequestError | None:
        """Load a model; note and return why when it fails."""
        replica = step.replica
        logger.info("loading %s, devices %s", replica, list(step.command.devices))
        request = step.request
        if self._store.is_wanted_in_person(replica.model):
            # The neuron loads even what it has given up, if somebody asks in person.
            request = msgspec.structs.replace(request, automatic=False)
        began = self._clock.now()
        try:
            error = await _error_of(replica, lambda: self._clients[replica.node].load(request))
            if error is None:
                load_s = self._clock.now() - began
                logger.info("loaded %s in %.1f s", replica, load_s)
                self._metrics.loaded(model=replica.model, node=replica.node, load_s=load_s)
                self._store.satisfied(replica.model)
                await self._shown(replica.node, lambda state: is_shown(state, replica))
            else:
                logger.warning("loading %s failed: %s", replica, error.message)
                self._failed(replica, error.message, error)
            return error
        finally:
            self._store.update(partial(without_command, replica=replica))
            self._store.refresh(replica.node)

    async def wake(self, step: Wake) -> RequestError | None:
        """Wake a model; what goes wrong is noted and returned."""
        replica = step.replica
        logger.info("waking %s", replica)
        request, began = WakeRequest(model_id=replica.model), self._clock.now()
        try:
            error = await _error_of(replica, lambda: self._clients[replica.node].wake(request))
            if error is None:
                logger.info("woke %s in %.1f s", replica, self._clock.now() - began)
                self._store.satisfied(replica.model)
                await self._shown(replica.node, lambda state: is_shown(state, replica))
            else:
                logger.warning("waking %s failed: %s", replica, error.message)
                self._failed(replica, error.message, error)
            return error
        finally:
            self._store.update(partial(without_command, replica=replica))
            self._store.refresh(replica.node)

    async def make_room(self, step: Evict) -> RequestError | None:
        """Have those go who give way; the next plan sees the room, and loads or wakes.

        What goes wrong is noted and returned.
        """
        swap = step.swap
        logger.info(
            "making room for %s on %s: %s",
            step.model,
            swap.node,
            ", ".join(f"{victim.replica.model} ({victim.way})" for victim in swap.victims),
        )
        has_room = False
        try:
            error = await self._part(swap)
            if error is not None:
                wanted = ReplicaId(node=swap.node, model=step.model)
                self._failed(wanted, f"room could not be made: {error.message}")
            else:
                has_room = True
                for victim in swap.replicas:
                    self._metrics.evicted(model=victim.model, node=victim.node)
                await self._shown(
                    swap.node,
                    lambda state: all(is_gone(state, victim) for victim in swap.replicas),
                )
            return error
        finally:
            self._store.update(partial(without_swap, model=step.model))
            if has_room and swap.is_bound:
                self._store.want_on(ReplicaId(node=swap.node, model=step.model))
            elif has_room:
                # Who asked may have left, and nobody shall have given way for nothing.
                self._store.want_first(step.model)
            self._store.refresh(swap.node)

    async def _part(self, swap: Swap) -> RequestError | None:
        """Have the victims go, and return why one could not."""
        node = self._store.state.nodes.get(swap.node)
        replicas = {} if node is None else node.replicas
        asleep = {model for model, r in replicas.items() if r.status is ReplicaStatus.SLEEPING}
        # Those who are to sleep need the host's memory that the sleepers give back.
        for is_asleep in (True, False):
            group = [v for v in swap.victims if (v.replica.model in asleep) is is_asleep]
            errors = await asyncio.gather(*(self._send_off(victim) for victim in group))
            failures = [error for error in errors if error is not None]
            if failures:
                return failures[0]
        return None

    async def _send_off(self, victim: Victim) -> RequestError | None:
        """Put a replica to sleep or unload it, and return why neither could be done."""
        replica = victim.replica
        if victim.way is Way.UNLOAD:
            return await self._unload(replica)
        request = SleepRequest(
            model_id=replica.model,
            level=1 if victim.way is Way.SLEEP_1 else 2,
            drain_timeout_s=self._store.policy.drain_s,
        )
        error = await _error_of(replica, lambda: self._clients[replica.node].sleep(request))
        if error is None:
            return None
        logger.warning("%s does not sleep and is unloaded: %s", replica, error.message)
        if isinstance(error, ConflictError | NotFoundError):
            self._store.update(partial(with_sleepless, replica=replica))
        return await self._unload(replica)

    async def recycle(self, step: Recycle) -> RequestError | None:
        """Have a node replace its engine processes; return why it does not, or `None`."""
        name = step.node
        logger.info("recycling the engines of %s after %d cycles", name, step.cycles)
        retry_at = None
        try:
            error = await _error_of(name, lambda: self._clients[name].recycle())
            if error is None:
                await self._shown(name, lambda state: has_recycled(state, step))
            else:
                logger.warning("recycling the engines of %s failed: %s", name, error.message)
                retry_at = self._clock.now() + RECYCLE_RETRY_S
            return error
        finally:
            self._store.update(partial(without_recycling, name=name, retry_at=retry_at))
            self._store.refresh(name)

    async def retire(self, step: Retire) -> RequestError | None:
        """Unload what nobody uses; return why it could not be, or `None`."""
        replica = step.replica
        logger.info("unloading %s, which nobody has used for long", replica)
        try:
            error = await self._unload(replica)
            if error is None:
                await self._shown(replica.node, lambda state: is_gone(state, replica))
            else:
                await self._clock.sleep(RETRY_S)
            return error
        finally:
            self._store.update(partial(without_unloads, replicas=(replica,)))
            self._store.refresh(replica.node)

    async def _unload(self, replica: ReplicaId) -> RequestError | None:
        """Unload a replica and return why it could not be, or `None`."""
        drain_s = self._store.policy.drain_s
        request = UnloadRequest(model_id=replica.model, drain_timeout_s=drain_s)
        return await _error_of(
            replica, lambda: self._clients[replica.node].unload(request), fine=NotFoundError
        )

    def _failed(self, replica: ReplicaId, reason: str, error: RequestError | None = None) -> None:
        is_for_room = isinstance(error, InsufficientVramError)
        note = partial(
            with_load_failure,
            replica=replica,
            reason=reason,
            now=self._clock.now(),
            is_for_room=is_for_room,
            needed_bytes=error.needed_bytes if isinstance(error, InsufficientVramError) else 0,
        )
        self._store.update(note)

    async def _shown(self, node: NodeName, is_so: Callable[[FleetState], bool]) -> None:
        await shown(self._store, node, is_so)


async def _error_of(
    whom: ReplicaId | NodeName,
    send: Callable[[], Awaitable[None]],
    *,
    fine: type[RequestError] | tuple[()] = (),
) -> RequestError | None:
    """Send a command and return why it failed, or `None`; `fine` is no failure."""
    try:
        await send()
    except RequestError as error:
        return None if isinstance(error, fine) else error
    except Exception:
        logger.exception("a command for %s failed", whom)
        return UpstreamError("internal error")
    return None


async def shown(store: FleetStore, node: NodeName, is_so: Callable[[FleetState], bool]) -> None:
    """Wait until a report shows what an answer of `node` said, for `REPORT_WAIT_S` at most.

    Without this, the plan would see neither a command nor what it did, and repeat it.
    """
    store.refresh(node)
    try:
        async with asyncio.timeout(REPORT_WAIT_S):
            state = store.state
            while not is_so(state):
                state = await store.changed(state.revision)
    except TimeoutError:
        logger.warning("%s does not report what it has answered", node)


def is_shown(state: FleetState, replica: ReplicaId) -> bool:
    """Whether the snapshot has the replica coming or there, or its node is lost."""
    node = state.nodes.get(replica.node)
    known = None if node is None else node.replicas.get(replica.model)
    if node is None or known is None:
        return node is None or not node.is_reachable
    return known.is_servable or known.status in UNDER_WAY


def has_recycled(state: FleetState, step: Recycle) -> bool:
    """Whether the snapshot shows that the node counts anew, or it is lost."""
    node = state.nodes.get(step.node)
    return node is None or not node.is_reachable or (node.cycles or 0) < step.cycles


def is_gone(state: FleetState, replica: ReplicaId) -> bool:
    """Whether the snapshot shows that the replica holds no memory, or its node is lost."""
    node = state.nodes.get(replica.node)
    known = None if node is None else node.replicas.get(replica.model)
    if node is None or known is None:
        return True
    return not known.holds_memory or not node.is_reachable
