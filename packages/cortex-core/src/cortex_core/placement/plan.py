"""What to do with the fleet: for those who wait, for operators, and with what nobody uses."""

from collections.abc import Iterable, Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.fleet.reducers import with_command, with_swap, with_unloads
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.copies import purchase_of, queue_of
from cortex_core.placement.idle import idle_replicas
from cortex_core.placement.place import Limits, find_room, is_coming
from cortex_core.placement.policy import DEFAULT_POLICY, NO_RATES, EvictionPolicy, Rates
from cortex_core.placement.recycle import find_recycle
from cortex_core.placement.steps import Evict, Hold, Load, Retire, Step, Wake


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of the fleet, beside what the catalogue wants."""

    demand: tuple[ModelId, ...] = ()
    """Models that callers wait for, the longest wait first."""
    wishes: tuple[ReplicaId, ...] = ()
    """Models that operators want on a node, whether or not others serve them."""
    waiting: Mapping[ModelId, int] = msgspec.field(default_factory=dict)
    """How many requests wait for a model, also for one that is served."""
    request_times: Mapping[ModelId, float] = msgspec.field(default_factory=dict)
    """Seconds that a request for a model takes, where that was measured."""


def plan(
    state: FleetState,
    catalogue: Catalogue,
    demand: Iterable[ModelId],
    now: float,
    *,
    policy: EvictionPolicy = DEFAULT_POLICY,
    rates: Rates = NO_RATES,
    waiting: Mapping[ModelId, int] | None = None,
    request_times: Mapping[ModelId, float] | None = None,
    wishes: Iterable[ReplicaId] = (),
) -> tuple[Step, ...]:
    """Return what to do: for operators, for who waits, for who is to be kept, with who is idle.

    A model that a reachable node serves or loads, for which a load is on its way, or for which
    room is being made, needs nothing, so planning again with the steps noted gives no step
    again. Nothing is planned before every node was asked once: a gateway that has just started
    adopts what runs.

    Args:
        state: the fleet snapshot.
        catalogue: the profiles.
        demand: models that callers wait for, the longest wait first.
        now: monotonic seconds.
        policy: how room is made.
        rates: requests per second by model.
        waiting: requests that wait, by model; for further copies of models that are served.
        request_times: seconds that a request takes, by model, where measured.
        wishes: models that operators want on a node, the first wish first.
    """
    if not state.is_heard:
        return ()
    asked = Asked(
        demand=tuple(dict.fromkeys(demand)),
        wishes=tuple(dict.fromkeys(wishes)),
        waiting=waiting or {},
        request_times=request_times or {},
    )
    wanted = frozenset(asked.demand) | {model for model, count in asked.waiting.items() if count}
    # Who waits for an adapter waits for its base.
    profiles = (catalogue.profiles[model] for model in wanted if model in catalogue.profiles)
    wanted |= {profile.base for profile in profiles if profile.base is not None}
    case = Case(
        state=state, catalogue=catalogue, now=now, policy=policy, rates=rates, wanted=wanted
    )
    draft = _Draft(case)
    for wish in asked.wishes:
        draft.grant(wish)
    for model in asked.demand:
        draft.serve(model)
    if catalogue.kept and not state.is_recycling:
        # What is away because its engine is being replaced comes back by itself.
        for profile in catalogue.kept:
            draft.keep(profile)
    for model, count in asked.waiting.items():
        draft.copy(model, count, asked.request_times)
    draft.tidy()
    return tuple(draft.steps)


def open_wishes(
    state: FleetState, wishes: Iterable[ReplicaId], steps: Iterable[Step]
) -> tuple[ReplicaId, ...]:
    """Return the wishes that are to be kept, in their order, after a plan with `steps` was made.

    One that was granted is done with, and so is one that no passing of time grants.

    Args:
        state: the fleet snapshot that the plan was made for.
        wishes: those that the plan was made with.
        steps: what it says.
    """
    held = {
        ReplicaId(node=step.only, model=step.model)
        for step in steps
        if isinstance(step, Hold) and step.only is not None and step.retry_at is not None
    }
    # Room is made for a model on one node at a time.
    return tuple(
        wish for wish in wishes if wish in held or not state.is_heard or wish.model in state.swaps
    )


class _Draft:
    """A plan while it is being made: each step is seen by those after it."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._awaited: frozenset[NodeName] = frozenset()
        self.steps: list[Step] = []

    def grant(self, wish: ReplicaId) -> None:
        """Have a model on that very node."""
        state = self._case.state
        node = state.nodes.get(wish.node)
        if node is None or wish.model in state.swaps or wish.node in self._homes(wish.model):
            return
        self._take(find_room(self._case, wish.model, Limits(only=wish.node)), is_bound=True)

    def serve(self, model: ModelId) -> None:
        """Have a model anywhere, for those who wait."""
        state = self._case.state
        if is_coming(state, model) or model in state.swaps:
            return
        step = find_room(self._case, model, Limits(barred=self._awaited))
        if isinstance(step, Hold):
            # Else small models would take turns on the node for ever, and a big one none.
            self._awaited |= step.awaited
        self._take(step)

    def keep(self, profile: Profile) -> None:
        """Have as many copies as are kept loaded whether or not anybody asks."""
        while len(self._homes(profile.id)) < profile.replicas.min:
            if profile.id in self._case.state.swaps:
                return
            step = find_room(self._case, profile.id, Limits(barred=self._awaited))
            if isinstance(step, Hold):
                return  # nobody waits who would have to be told
            self._take(step, is_bound=True)
            if isinstance(step, Evict) or step.replica.model != profile.id:
                return  # an adapter comes after its base

    def copy(self, model: ModelId, waiting: int, times: Mapping[ModelId, float]) -> None:
        """Have one more copy of a model that is served, if that is worth it."""
        case, profile = self._case, self._case.catalogue.profiles.get(model)
        homes = self._homes(model)
        if profile is None or not waiting or not 0 < len(homes) < profile.replicas.max:
            return
        if model in case.state.swaps or self._is_growing(model):
            return
        step = find_room(case, model, Limits(barred=self._awaited))
        if isinstance(step, Hold):
            return
        queue = queue_of(case, model, waiting, times)
        if purchase_of(case, step, queue, len(homes)).is_worth_it:
            self._take(step, is_bound=True)

    def tidy(self) -> None:
        """Give back what nobody uses, and begin a node anew where that is due."""
        for replica in idle_replicas(self._case):
            self._take(Retire(replica=replica))
        recycle = find_recycle(self._case)
        if recycle is not None:
            self._take(recycle)

    def _homes(self, model: ModelId) -> frozenset[NodeName]:
        return self._case.copies(model)

    def _is_growing(self, model: ModelId) -> bool:
        """Whether a copy is on its way already."""
        state = self._case.state
        if any(target.model == model for target in state.commands):
            return True
        return any(replica.status in UNDER_WAY for _, replica in state.replicas_of(model))

    def _take(self, step: Step, *, is_bound: bool = False) -> None:
        """Add a step; what follows must see the memory as taken."""
        state = self._case.state
        match step:
            case Load(replica=replica, command=command) | Wake(replica=replica, command=command):
                state = with_command(state, replica, command)
            case Evict(model=model, swap=swap):
                if is_bound:
                    swap = msgspec.structs.replace(swap, is_bound=True)
                    step = msgspec.structs.replace(step, swap=swap)
                state = with_swap(state, model, swap)
            case Retire(replica=replica):
                state = with_unloads(state, (replica,))
            case _:
                pass
        self._case = msgspec.structs.replace(self._case, state=state)
        self.steps.append(step)
