"""The fleet snapshot, who waits for it, and which models are wanted."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.rates import Rate, counted, per_second
from cortex_core.fleet.reducers import revised, without_node
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import DEFAULT_POLICY, EvictionPolicy
from cortex_core.routing.retry import Failure
from cortex_gateway.ports import UpstreamFailure


class FleetStore:
    """`Store`: one immutable snapshot, replaced whole. Used from one event loop."""

    def __init__(
        self, state: FleetState, catalogue: Catalogue, policy: EvictionPolicy = DEFAULT_POLICY
    ) -> None:
        self._state = state
        self._catalogue = catalogue
        self._policy = policy
        self._waiters: Counter[ModelId] = Counter()
        self._asked: dict[ModelId, None] = {}
        self._rates: dict[ModelId, Rate] = {}
        # Nodes come and go with the settings, so that entries are made when they are needed.
        self._limits: defaultdict[NodeName, set[asyncio.Timeout]] = defaultdict(set)
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._refreshes: defaultdict[NodeName, asyncio.Event] = defaultdict(asyncio.Event)

    @property
    def state(self) -> FleetState:
        """The newest snapshot."""
        return self._state

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue in force."""
        return self._catalogue

    @property
    def policy(self) -> EvictionPolicy:
        """How room is made."""
        return self._policy

    def configure(self, catalogue: Catalogue, policy: EvictionPolicy) -> None:
        """Put another catalogue and another policy in force, for whatever is decided from now."""
        self._catalogue, self._policy = catalogue, policy
        self.update(revised)

    def forget(self, node: NodeName) -> None:
        """Take a node out of the fleet; requests that are with it go on."""
        self.update(partial(without_node, name=node))
        self._limits.pop(node, None)
        self._refreshes.pop(node, None)

    def update(self, reducer: Callable[[FleetState], FleetState]) -> None:
        """Replace the snapshot; a reducer that returns its argument wakes nobody."""
        state = reducer(self._state)
        if state is not self._state:
            before, self._state = self._state, state
            self._cut_waits(before)
            # Whoever waits holds the old event, so none can miss a change or see it twice.
            self._changed.set()
            self._changed = asyncio.Event()
            self._wanted.set()

    async def changed(self, revision: int) -> FleetState:
        """Wait until the snapshot is newer than `revision` and return it."""
        while self._state.revision <= revision:
            await self._changed.wait()
        return self._state

    @contextmanager
    def demand(self, model: ModelId) -> Iterator[None]:
        """Count one waiter for `model` while the context is open."""
        self._waiters[model] += 1
        self._asked[model] = None
        self._wanted.set()
        try:
            yield
        finally:
            self._waiters[model] -= 1
            if not self._waiters[model]:
                del self._waiters[model]

    def demanded(self) -> frozenset[ModelId]:
        """Models that at least one request waits for."""
        return frozenset(self._waiters)

    def take_demanded(self) -> tuple[ModelId, ...]:
        """Return the models to plan for: waited for, or asked for since this was called last.

        The longest wait comes first. A caller that waits for nothing still has the model loaded
        for the next one.
        """
        wanted = tuple(dict.fromkeys((*self._waiters, *self._asked)))
        self._asked.clear()
        return wanted

    def count(self, model: ModelId, now: float) -> None:
        """Note one request for `model`."""
        self._rates[model] = counted(self._rates.get(model), now)

    def rates(self, now: float) -> dict[ModelId, float]:
        """Return requests per second by model."""
        return {model: per_second(rate, now) for model, rate in self._rates.items()}

    def want(self, model: ModelId) -> None:
        """Have `model` planned for once more, whether or not anybody waits for it."""
        self._asked[model] = None
        self._wanted.set()

    def reconsider(self) -> None:
        """Let the reconciler plan again although nothing has changed but the time."""
        self._wanted.set()

    async def wanted(self) -> None:
        """Wait until there was a change, new demand or `reconsider` since this returned last.

        For the reconciler alone: a second caller would take the wake-ups of the first.
        """
        await self._wanted.wait()
        self._wanted.clear()

    @asynccontextmanager
    async def while_up(self, node: NodeName) -> AsyncIterator[None]:
        """Run a block that is cancelled when `node` goes down; see `Store`."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits[node].add(limit)
                try:
                    yield
                finally:
                    self._limits[node].discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise UpstreamFailure(Failure.CUT_BEFORE_ANSWER, "its node went down") from None

    def _cut_waits(self, before: FleetState) -> None:
        for name, limits in self._limits.items():
            if limits and _is_down(self._state, name) and not _is_down(before, name):
                for limit in limits:
                    limit.reschedule(asyncio.get_running_loop().time())

    def refresh(self, node: NodeName) -> None:
        """Ask for a fresh report of `node` at once, if the fleet still has it."""
        if node in self._state.nodes:
            self._refreshes[node].set()

    async def refresh_asked(self, node: NodeName) -> None:
        """Wait until somebody asks for a report of `node`; for its watcher alone."""
        asked = self._refreshes[node]
        await asked.wait()
        asked.clear()


def _is_down(state: FleetState, name: NodeName) -> bool:
    node = state.nodes.get(name)
    return node is not None and node.health is NodeHealth.DOWN
