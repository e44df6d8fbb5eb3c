"""The gateway's control half over real sockets, paced so that tests need not wait."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.replica import ReplicaStatus
from cortex_core.server.clock import Clock, SystemClock
from cortex_gateway.clients.node import NodePatience, node_client_maker
from cortex_gateway.clients.session import open_session
from cortex_gateway.control.control import Control
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.control.watcher import WatchPace
from cortex_gateway.lifespan import control_plane
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.settings import Timeouts

WAIT_S = 5.0
FAST = WatchPace(poll_s=0.03)
NEVER = WatchPace(poll_s=3600.0)
"""For tests of what happens without a poll."""
PATIENT = NodePatience(poll_s=4.0, events_s=15.0, load_s=60.0)
HASTY = NodePatience(poll_s=0.3, events_s=0.3, load_s=60.0)
"""For tests of silence; still long enough for an answer on a busy machine."""

MODEL = ModelId("org/model")
NODE = NodeName("beast")


PROFILE = Profile(id=MODEL, harness="simulated")


class QuickClock:
    """A clock on which waits pass quicker, in step with what it shows."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._system = SystemClock()

    def now(self) -> float:
        return self._system.now() * self._factor

    def wall(self) -> float:
        return self._system.wall()

    async def sleep(self, seconds: float) -> None:
        await self._system.sleep(seconds / self._factor)


@asynccontextmanager
async def control_of(
    endpoints: Mapping[str, str],
    *,
    profiles: Iterable[Profile] = (),
    pace: WatchPace = FAST,
    patience: NodePatience = PATIENT,
    metrics: GatewayMetrics | None = None,
    clock: Clock | None = None,
    policy: EvictionPolicy | None = None,
    journal: Journal | None = None,
) -> AsyncIterator[FleetStore]:
    """Run watchers and reconciler over the given nodes."""
    async with operated(
        endpoints,
        profiles=profiles,
        pace=pace,
        patience=patience,
        metrics=metrics,
        clock=clock,
        policy=policy,
        journal=journal,
    ) as control:
        yield control.store


@asynccontextmanager
async def operated(
    endpoints: Mapping[str, str],
    *,
    profiles: Iterable[Profile] = (),
    pace: WatchPace = FAST,
    patience: NodePatience = PATIENT,
    metrics: GatewayMetrics | None = None,
    clock: Clock | None = None,
    policy: EvictionPolicy | None = None,
    journal: Journal | None = None,
) -> AsyncIterator[Control]:
    """Run the same, with what operators may have done."""
    nodes = {NodeName(name): url for name, url in endpoints.items()}
    catalogue = Catalogue(profiles={entry.id: entry for entry in profiles})
    async with (
        open_session(Timeouts()) as session,
        control_plane(
            catalogue,
            make_client=node_client_maker(session, lambda: patience),
            metrics=metrics or GatewayMetrics(CollectorRegistry()),
            journal=journal or Journal(SystemClock(), lambda kind: None),
            clock=clock or SystemClock(),
            pace=pace,
            policy=policy or EvictionPolicy(),
            load_limit_s=lambda: patience.load_s,
        ) as control,
    ):
        control.roster.set(nodes, ())
        yield control


async def until(store: FleetStore, is_so: Callable[[FleetState], bool]) -> FleetState:
    """Wait for a snapshot with a property."""
    state = store.state
    async with asyncio.timeout(WAIT_S):
        while not is_so(state):
            state = await store.changed(state.revision)
    return state


async def until_true(is_so: Callable[[], bool]) -> None:
    """Wait for something outside the snapshot."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.005)


def is_health(node: str, health: NodeHealth) -> Callable[[FleetState], bool]:
    return lambda state: state.nodes[NodeName(node)].health is health


def has_status(node: str, model: str, status: ReplicaStatus) -> Callable[[FleetState], bool]:
    def is_so(state: FleetState) -> bool:
        replica = state.nodes[NodeName(node)].replicas.get(ModelId(model))
        return replica is not None and replica.status is status

    return is_so
