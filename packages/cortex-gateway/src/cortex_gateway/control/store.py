"""The fleet snapshot, who waits for it, and which models are wanted."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType

from cortex_core.catalogue import Catalogue
from cortex_core.errors import ModelLoadingError
from cortex_core.fleet.rates import Rate, counted, per_second
from cortex_core.fleet.reducers import (
    revised,
    with_doubt,
    with_request_failure,
    with_request_success,
    with_use,
    without_node,
)
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.policy import DEFAULT_POLICY, EvictionPolicy
from cortex_core.routing.retry import Failure
from cortex_gateway.ports import UpstreamFailure

TOUCH_S = 1.0
"""How exactly it is known when a replica was used."""

REQUEST_SHARE = 0.1
"""How much the latest request counts in what a request takes."""


class FleetStore:
    """`Store`: one immutable snapshot, replaced whole. Used from one event loop."""

    def __init__(
        self, state: FleetState, catalogue: Catalogue, policy: EvictionPolicy = DEFAULT_POLICY
    ) -> None:
        self._state = state
        self._catalogue = catalogue
        self._policy = policy
        self._waiters: Counter[ModelId] = Counter()
        self._in_person: Counter[ModelId] = Counter()
        self._asked: dict[ModelId, None] = {}
        self._first: dict[ModelId, None] = {}
        self._wishes: dict[ReplicaId, None] = {}
        self._rates: dict[ModelId, Rate] = {}
        self._request_times: dict[ModelId, float] = {}
        # Nodes come and go with the settings, so that entries are made when they are needed.
        self._waits: defaultdict[NodeName, set[WhileUp]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
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
        self.keep_wishes(self.wishes(), (wish for wish in self._wishes if wish.node != node))
        self._waits.pop(node, None)
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

    def doubt(self, replica: ReplicaId) -> None:
        """Believe no more that a replica serves, until its node reports."""
        self.update(partial(with_doubt, replica=replica))

    def failed(self, replica: ReplicaId, now: float) -> None:
        """Note that a request failed at `replica`."""
        self.update(partial(with_request_failure, replica=replica, now=now))

    def succeeded(self, replica: ReplicaId) -> None:
        """Note that a request ended well at `replica`, which has failed before."""
        self.update(partial(with_request_success, replica=replica))

    @contextmanager
    def demand(self, model: ModelId) -> Iterator[None]:
        """Count one waiter for `model` while the context is open.

        One that leaves wants nothing any more; one whose time was up (`ModelLoadingError`) has
        the model planned for once.
        """
        self._waiters[model] += 1
        self._wanted.set()
        try:
            yield
        except ModelLoadingError:
            # Its time was up, and whoever asks next shall find the model there.
            self.want(model)
            raise
        finally:
            self._waiters[model] -= 1
            if not self._waiters[model]:
                del self._waiters[model]

    @contextmanager
    def demand_in_person(self, model: ModelId) -> Iterator[None]:
        """Count an operator who waits for `model`; see `demand`."""
        self._in_person[model] += 1
        try:
            with self.demand(model):
                yield
        finally:
            self._in_person[model] -= 1
            if not self._in_person[model]:
                del self._in_person[model]

    def is_wanted_in_person(self, model: ModelId) -> bool:
        """Return whether an operator waits for `model`."""
        return self._in_person[model] > 0

    def demanded(self) -> frozenset[ModelId]:
        """Models that at least one request waits for."""
        return frozenset(self._waiters)

    def take_demanded(self) -> tuple[ModelId, ...]:
        """Return the models to plan for: waited for, or wanted once since this was called last.

        Those for which room was made come first, so that nobody else takes it. Then the longest
        wait for a replica: a model that is served goes behind all that are not, however long its
        line has been, and so does not come back at once when it has to give way.
        """
        for model in tuple(self._waiters):
            if self._state.is_served(model):
                self._waiters[model] = self._waiters.pop(model)
        wanted = tuple(dict.fromkeys((*self._first, *self._waiters, *self._asked)))
        self._first.clear()
        self._asked.clear()
        return wanted

    def count(self, model: ModelId, now: float, requests: int = 1) -> None:
        """Note one request for `model`, or as many as have come since the last note."""
        self._rates[model] = counted(self._rates.get(model), now, requests=requests)

    def rates(self, now: float) -> Mapping[ModelId, float]:
        """Return requests per second by model."""
        return _Rates(self._rates, now)

    def waiting(self) -> Mapping[ModelId, int]:
        """Return how many requests wait, by model; no entry is none."""
        return dict(self._waiters)

    def served(self, model: ModelId, request_s: float) -> None:
        """Note how long a request for `model` was with a replica."""
        known = self._request_times.get(model, request_s)
        self._request_times[model] = known + (request_s - known) * REQUEST_SHARE

    def request_times(self) -> Mapping[ModelId, float]:
        """Return the seconds that a request takes, by model; no entry is not measured."""
        return dict(self._request_times)

    def touch(self, replica: ReplicaId, now: float) -> None:
        """Note that a request begins or ends at `replica`; wakes nobody.

        Neurons of the given kind do not report use. Notes within `TOUCH_S` of the last count
        as made already, so that the data path may call this as often as it likes.
        """
        known = self._state.resident(replica)
        if known is not None and now - known.used >= TOUCH_S:
            self._state = with_use(self._state, replica, now)

    def want_on(self, replica: ReplicaId) -> None:
        """Have a model on that very node, whether or not others serve it.

        The wish is kept until it is acted on, or nothing but an operator could help.
        """
        self._wishes[replica] = None
        self._wanted.set()

    def wishes(self) -> tuple[ReplicaId, ...]:
        """Return what is wanted on a certain node, the oldest wish first."""
        return tuple(self._wishes)

    def keep_wishes(self, before: Iterable[ReplicaId], kept: Iterable[ReplicaId]) -> None:
        """Forget those of the wishes `before` that are not `kept`."""
        for wish in frozenset(before) - frozenset(kept):
            self._wishes.pop(wish, None)

    def want_first(self, model: ModelId) -> None:
        """Have `model` planned for once, before all others: room was made for it."""
        self._first[model] = None
        self._wanted.set()

    def want(self, model: ModelId) -> None:
        """Have `model` planned for once more, whether or not anybody waits for it."""
        self._asked[model] = None
        self._wanted.set()

    def satisfied(self, model: ModelId) -> None:
        """Note that `model` was loaded, which is all that was wanted once; who waits still waits.

        The next plan may come late, when the model has been sent off again.
        """
        self._first.pop(model, None)
        self._asked.pop(model, None)

    def renounce(self, model: ModelId, node: NodeName | None) -> None:
        """Forget what was wanted before somebody had `model` leave `node`, or every node."""
        self.satisfied(model)
        gone = [one for one in self._wishes if one.model == model and node in (None, one.node)]
        for wish in gone:
            del self._wishes[wish]

    def reconsider(self) -> None:
        """Let the reconciler plan again although nothing has changed but the time."""
        self._wanted.set()

    async def wanted(self) -> None:
        """Wait until there was a change, new demand or `reconsider` since this returned last.

        For the reconciler alone: a second caller would take the wake-ups of the first.
        """
        await self._wanted.wait()
        self._wanted.clear()

    def while_up(self, node: NodeName) -> "WhileUp":
        """Run a block that is cancelled when `node` goes down; see `Store`."""
        # Up to Python 3.11 it costs a system call to ask for the running loop.
        loop = self._loop = self._loop or asyncio.get_running_loop()
        return WhileUp(self._waits[node], loop)

    def _cut_waits(self, before: FleetState) -> None:
        for name, waits in self._waits.items():
            if waits and _is_down(self._state, name) and not _is_down(before, name):
                for wait in waits:
                    wait.cut()

    def refresh(self, node: NodeName) -> None:
        """Ask for a fresh report of `node` at once, if the fleet still has it."""
        if node in self._state.nodes:
            self._refreshes[node].set()

    async def refresh_asked(self, node: NodeName) -> None:
        """Wait until somebody asks for a report of `node`; for its watcher alone."""
        asked = self._refreshes[node]
        await asked.wait()
        asked.clear()


class WhileUp:
    """A block that is cancelled when a node goes down.

    As `asyncio.timeout` does it, but for a block that is entered for each request.

    Args:
        waits: all such blocks with that node.
        loop: runs it.
    """

    def __init__(self, waits: set["WhileUp"], loop: asyncio.AbstractEventLoop) -> None:
        self._waits = waits
        self._loop = loop
        self._is_cut = False

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._cancels = task.cancelling()
        self._waits.add(self)

    def cut(self) -> None:
        """Cancel the block."""
        if not self._is_cut:
            self._is_cut = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waits.discard(self)
        # Who else has cancelled the task meanwhile is obeyed.
        is_ours = self._is_cut and self._task.uncancel() <= self._cancels
        if is_ours and kind is asyncio.CancelledError:
            raise UpstreamFailure(Failure.CUT_BEFORE_ANSWER, "its node went down") from None


class _Rates(Mapping[ModelId, float]):
    """Requests per second as they look at a moment, reckoned when they are asked for."""

    def __init__(self, rates: Mapping[ModelId, Rate], now: float) -> None:
        self._rates = rates
        self._now = now

    def __getitem__(self, model: ModelId) -> float:
        return per_second(self._rates[model], self._now)

    def __iter__(self) -> Iterator[ModelId]:
        return iter(self._rates)

    def __len__(self) -> int:
        return len(self._rates)


def _is_down(state: FleetState, name: NodeName) -> bool:
    node = state.nodes.get(name)
    return node is not None and node.health is NodeHealth.DOWN
