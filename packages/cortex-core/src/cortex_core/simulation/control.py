"""The simulated gateway's control path: plan, have done what is planned, and see what came of it."""

import math
from collections.abc import Callable, Mapping
from functools import partial

from cortex_core.errors import InsufficientVramError, NotFoundError, RequestError, UpstreamError
from cortex_core.fleet.reducers import (
    with_command,
    with_facts,
    with_load_failure,
    with_miss,
    with_report,
    with_swap,
    with_unloads,
    without_command,
    without_swap,
    without_unloads,
)
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.case import Case
from cortex_core.placement.idle import next_idle_end
from cortex_core.placement.plan import plan
from cortex_core.placement.steps import Evict, Hold, Load, Recycle, Retire, Step, Wake
from cortex_core.simulation.journal import Deed, Journal
from cortex_core.simulation.neuron import Neuron, News
from cortex_core.simulation.store import Store
from cortex_core.simulation.timeline import Timeline
from cortex_core.wire.neuron import UnloadRequest

POLL_S = 2.0
"""Between two questions to a node that does not answer, as a gateway asks them."""

RETRY_S = 60.0
"""How long a replica that would not be unloaded for want of use is left in peace."""


class Control:
    """Brings the fleet nearer to what callers wait for.

    Args:
        store: the fleet.
        neurons: the machines.
        report_s: between two reports of no more than how busy a node is.
        timeline: virtual time.
        journal: where deeds are noted.
    """

    def __init__(
        self,
        store: Store,
        neurons: Mapping[NodeName, Neuron],
        report_s: float,
        timeline: Timeline,
        journal: Journal,
    ) -> None:
        self._store = store
        self._neurons = neurons
        self._report_s = report_s
        self._timeline = timeline
        self._journal = journal
        self._due: set[NodeName] = set()
        """Nodes that will report how busy they are."""
        self._alarm_at = math.inf

    def changed(self, name: NodeName, news: News) -> None:
        """Take note that a node has something to report."""
        match news:
            case News.CHANGE:
                self.report(name)
            case News.BEGUN:
                # The order is noted already, so that nobody would decide otherwise now.
                self._store.note(partial(self._reported, name))
            case News.LOAD if name not in self._due:
                self._due.add(name)
                at = self._timeline.now + self._report_s
                self._timeline.at(at, partial(self._report_load, name))
            case News.LOAD:
                pass

    def report(self, name: NodeName) -> None:
        """Take a node's report, and its facts if they are not known; none if it is away."""
        if self._neurons[name].is_up:
            self._store.update(partial(self._reported, name))

    def lose(self, name: NodeName) -> None:
        """Ask a node that does not answer, until it is given up or back."""
        if self._neurons[name].is_up:
            self.report(name)
            return
        self._store.update(partial(with_miss, name=name, error="it does not answer"))
        if self._store.state.nodes[name].health is NodeHealth.DOWN:
            self._store.update(partial(_without_orders, name=name))
        self._timeline.at(self._timeline.now + POLL_S, partial(self.lose, name))

    def plan(self) -> frozenset[ModelId]:
        """Decide what is to be done, begin it, and return for which models one waits after that."""
        store, now = self._store, self._timeline.now
        steps = plan(
            store.state,
            store.catalogue,
            store.take_demanded(),
            now,
            policy=store.policy,
            rates=store.rates(now),
        )
        for step in steps:
            self._begin(step)
        self._set_alarm(steps)
        return _waits(steps)

    def _reported(self, name: NodeName, state: FleetState) -> FleetState:
        neuron, now = self._neurons[name], self._timeline.now
        state = with_report(state, name, neuron.report(), now)
        if state.nodes[name].facts is None:
            state = with_facts(state, name, neuron.facts())
        return state

    def _report_load(self, name: NodeName) -> None:
        self._due.discard(name)
        if self._neurons[name].is_up:
            self._store.note(partial(self._reported, name))

    def _begin(self, step: Step) -> None:
        match step:
            case Load():
                self._load(step)
            case Evict():
                self._make_room(step)
            case Retire():
                self._retire(step)
            case Wake() | Recycle() | Hold():
                pass  # nobody sleeps on these nodes, and none counts its cycles

    def _load(self, step: Load) -> None:
        replica, command = step.replica, step.command
        self._did("load", replica)
        self._store.note(partial(with_command, replica=replica, command=command))

        def answered(error: RequestError | None) -> None:
            if self._store.state.commands.get(replica) is not command:
                return  # given up when its node was
            if error is not None:
                self._failed(replica, error)
            self._store.update(partial(without_command, replica=replica))

        self._to(replica.node, lambda neuron: neuron.load(step.request, answered), answered)

    def _make_room(self, step: Evict) -> None:
        model, swap = step.model, step.swap
        victims = tuple(victim.model for victim in swap.replicas)
        self._did("evict", ReplicaId(node=swap.node, model=model), victims)
        self._store.note(partial(with_swap, model=model, swap=swap))
        errors: list[RequestError | None] = []

        def answered(error: RequestError | None) -> None:
            errors.append(None if isinstance(error, NotFoundError) else error)
            if self._store.state.swaps.get(model) is not swap or len(errors) < len(victims):
                return
            failures = [error for error in errors if error is not None]
            if failures:
                self._failed(ReplicaId(node=swap.node, model=model), failures[0])
            self._store.update(partial(without_swap, model=model))
            if not failures:
                # Who asked may have left, and nobody shall have given way for nothing.
                self._store.want(model)

        for victim in swap.replicas:
            self._unload(victim, answered)

    def _retire(self, step: Retire) -> None:
        replica = step.replica
        self._did("retire", replica)
        self._store.note(partial(with_unloads, replicas=(replica,)))

        def forget() -> None:
            self._store.update(partial(without_unloads, replicas=(replica,)))

        def answered(error: RequestError | None) -> None:
            if error is None or isinstance(error, NotFoundError):
                forget()
            else:
                self._timeline.at(self._timeline.now + RETRY_S, forget)

        self._unload(replica, answered)

    def _unload(self, replica: ReplicaId, answered: Callable[[RequestError | None], None]) -> None:
        drain_s = self._store.policy.drain_s
        request = UnloadRequest(model_id=replica.model, drain_timeout_s=drain_s)
        self._to(replica.node, lambda neuron: neuron.unload(request, answered), answered)

    def _to(
        self,
        name: NodeName,
        send: Callable[[Neuron], None],
        answered: Callable[[RequestError | None], None],
    ) -> None:
        neuron = self._neurons[name]
        if neuron.is_up:
            send(neuron)
        else:
            answered(UpstreamError("the node could not be reached"))

    def _failed(self, replica: ReplicaId, error: RequestError) -> None:
        self._store.update(
            partial(
                with_load_failure,
                replica=replica,
                reason=error.message,
                now=self._timeline.now,
                is_for_room=isinstance(error, InsufficientVramError),
            )
        )

    def _did(self, kind: str, replica: ReplicaId, victims: tuple[ModelId, ...] = ()) -> None:
        deed = Deed(
            at=self._timeline.now,
            kind=kind,
            model=replica.model,
            node=replica.node,
            victims=victims,
        )
        self._journal.deeds.append(deed)

    def _set_alarm(self, steps: tuple[Step, ...]) -> None:
        """Plan again when time alone changes what is to be done."""
        store, now = self._store, self._timeline.now
        alarms = [s.retry_at for s in steps if isinstance(s, Hold) and s.retry_at is not None]
        alarms += [
            failure.retry_at
            for target, failure in store.state.failures.items()
            if target.model in store.waiting
        ]
        case = Case(state=store.state, catalogue=store.catalogue, policy=store.policy, now=now)
        alarms.append(next_idle_end(case))
        at = min((alarm for alarm in alarms if now < alarm < math.inf), default=math.inf)
        if at < self._alarm_at or self._alarm_at <= now:
            self._alarm_at = at
            if at < math.inf:
                self._timeline.at(at, partial(self._ring, at))

    def _ring(self, at: float) -> None:
        if at == self._alarm_at:
            self._alarm_at = math.inf
            self._store.reconsider()


def _without_orders(state: FleetState, *, name: NodeName) -> FleetState:
    """Forget commands to a node that is down: their answers may never come."""
    for replica in [replica for replica in state.commands if replica.node == name]:
        state = without_command(state, replica)
    for model in [model for model, swap in state.swaps.items() if swap.node == name]:
        state = without_swap(state, model)
    return without_unloads(state, [r for r in state.unloads if r.node == name])


def _waits(steps: tuple[Step, ...]) -> frozenset[ModelId]:
    """Return the models for which one waits: something is done for them, or will be."""
    waits: set[ModelId] = set()
    barred: frozenset[NodeName] = frozenset()
    for step in steps:
        match step:
            case Load(replica=replica) | Wake(replica=replica):
                waits.add(replica.model)
            case Evict(model=model):
                waits.add(model)
            case Hold(model=model, retry_at=retry_at, awaited=awaited):
                # Who is kept from a node by those who have waited for longer gets its turn there.
                if retry_at is not None or barred:
                    waits.add(model)
                barred |= awaited
            case Retire() | Recycle():
                pass
    return frozenset(waits)
