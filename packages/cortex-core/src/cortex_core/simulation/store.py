"""The simulated gateway's picture of its fleet, and which models are wanted.

The same reducers make it as make the picture of a real gateway. What is different is how often it
is looked at: a report that says no more than how busy a node is makes nobody plan or ask again.
"""

from collections.abc import Callable, Iterable

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.rates import Rate, counted, per_second
from cortex_core.fleet.reducers import with_use
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.simulation.timeline import Action, Timeline

TOUCH_S = 1.0
"""How exactly it is known when a replica was used, as with a real gateway."""

REQUEST_SHARE = 0.1
"""How much the latest request counts in what a request takes."""


class Store:
    """One immutable snapshot, replaced whole.

    Args:
        state: the fleet at the beginning.
        catalogue: the profiles.
        policy: how room is made.
        timeline: virtual time.
    """

    def __init__(
        self,
        state: FleetState,
        catalogue: Catalogue,
        policy: EvictionPolicy,
        timeline: Timeline,
    ) -> None:
        self.state = state
        self.catalogue = catalogue
        self.policy = policy
        self.epoch = 0
        """Grows whenever a decision may have become another one."""
        self.settle: Action = lambda: None
        """Asks and plans again; called once, however much has changed at one moment."""
        self.request_times: dict[ModelId, float] = {}
        """Seconds that a request takes, by model."""
        self._timeline = timeline
        self._is_due = False
        self._waiters: dict[ModelId, int] = {}
        self._first: dict[ModelId, None] = {}
        self._wishes: dict[ReplicaId, None] = {}
        self._rates: dict[ModelId, Rate] = {}

    def note(self, reducer: Callable[[FleetState], FleetState]) -> None:
        """Replace the snapshot by one from which nobody would decide otherwise."""
        self.state = reducer(self.state)

    def update(self, reducer: Callable[[FleetState], FleetState]) -> None:
        """Replace the snapshot, and have everything decided anew."""
        self.state = reducer(self.state)
        self.reconsider()

    def reconsider(self) -> None:
        """Have everything decided anew, since time has passed or something has changed."""
        self.epoch += 1
        self._due()

    def want_first(self, model: ModelId) -> None:
        """Have `model` planned for once, before all others: room was made for it."""
        self._first[model] = None
        self._due()

    def want_on(self, replica: ReplicaId) -> None:
        """Have a model on that very node, whether or not others serve it."""
        self._wishes[replica] = None
        self._due()

    def wishes(self) -> tuple[ReplicaId, ...]:
        """Return what is wanted on a certain node, the oldest wish first."""
        return tuple(self._wishes)

    def keep_wishes(self, kept: Iterable[ReplicaId]) -> None:
        """Forget all wishes but those that are `kept`."""
        self._wishes = dict.fromkeys(kept)

    def wait_for(self, model: ModelId, waiting: int) -> None:
        """Note how many requests wait for `model`; the first of them makes it wanted."""
        if not waiting:
            self._waiters.pop(model, None)
        elif model in self._waiters:
            self._waiters[model] = waiting
        else:
            self._waiters[model] = waiting
            self._due()

    @property
    def waiting(self) -> dict[ModelId, int]:
        """Requests that wait, by model; the longest wait first."""
        return self._waiters

    def take_demanded(self) -> tuple[ModelId, ...]:
        """Return the models to plan for, in the order in which a real gateway's store has them."""
        for model in [*self._waiters]:
            if self.state.is_served(model):
                self._waiters[model] = self._waiters.pop(model)
        wanted = tuple(dict.fromkeys((*self._first, *self._waiters)))
        self._first.clear()
        return wanted

    def touch(self, replica: ReplicaId, now: float) -> None:
        """Note that a request begins or ends at `replica`."""
        known = self.state.resident(replica)
        if known is not None and now - known.used >= TOUCH_S:
            self.state = with_use(self.state, replica, now)

    def served(self, model: ModelId, request_s: float) -> None:
        """Note how long a request for `model` was with a replica."""
        known = self.request_times.get(model, request_s)
        self.request_times[model] = known + (request_s - known) * REQUEST_SHARE

    def count(self, model: ModelId, now: float) -> None:
        """Note one request for `model`."""
        self._rates[model] = counted(self._rates.get(model), now)

    def rates(self, now: float) -> dict[ModelId, float]:
        """Return requests per second by model."""
        return {model: per_second(rate, now) for model, rate in self._rates.items()}

    def _due(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._timeline.at(self._timeline.now, self._settle)

    def _settle(self) -> None:
        self._is_due = False
        self.settle()
