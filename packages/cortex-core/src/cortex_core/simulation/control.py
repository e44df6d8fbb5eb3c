"""The simulated gateway's control path: what nodes report, and what is planned from it."""

import math
from collections.abc import Mapping
from functools import partial

from cortex_core.fleet.reducers import with_facts, with_miss, with_report
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.case import Case
from cortex_core.placement.idle import next_idle_end
from cortex_core.placement.plan import open_wishes, plan
from cortex_core.placement.steps import Evict, Hold, Load, Recycle, Retire, Step, Wake
from cortex_core.simulation.neuron import Neuron, News
from cortex_core.simulation.orders import Orders, without_orders
from cortex_core.simulation.store import Store
from cortex_core.simulation.timeline import Timeline

POLL_S = 2.0
"""Between two questions to a node that does not answer, as a gateway asks them."""

COPY_S = 5.0
"""How often it is looked whether a model whose requests wait is worth one more copy: a queue
grows without any other news."""


class Control:
    """Brings the fleet nearer to what callers wait for.

    Args:
        store: the fleet.
        neurons: the machines.
        orders: has done what is planned.
        report_s: between two reports of no more than how busy a node is.
        timeline: virtual time.
    """

    def __init__(
        self,
        store: Store,
        neurons: Mapping[NodeName, Neuron],
        orders: Orders,
        report_s: float,
        timeline: Timeline,
    ) -> None:
        self._store = store
        self._neurons = neurons
        self._orders = orders
        self._report_s = report_s
        self._timeline = timeline
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
            self._store.update(partial(without_orders, name=name))
        self._timeline.at(self._timeline.now + POLL_S, partial(self.lose, name))

    def plan(self) -> frozenset[ModelId]:
        """Decide what is to be done, begin it, and return for which models one waits after that."""
        store, now, wishes = self._store, self._timeline.now, self._store.wishes()
        steps = plan(
            store.state,
            store.catalogue,
            store.take_demanded(),
            now,
            policy=store.policy,
            rates=store.rates(now),
            waiting=store.waiting,
            request_times=store.request_times,
            wishes=wishes,
        )
        store.keep_wishes(open_wishes(store.state, wishes, steps))
        for step in steps:
            self._begin(step)
        self._set_alarm(steps)
        waits = _waits(steps)
        # What is done for a base is done for who waits for its adapters.
        profiles = store.catalogue.profiles
        return waits | {m for m in store.waiting if m in profiles and profiles[m].base in waits}

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
            case Load() | Wake():
                self._orders.bring(step)
            case Evict():
                self._orders.make_room(step)
            case Retire():
                self._orders.retire(step)
            case Hold() | Recycle():
                # Engines that do not exist need no recycling, and the policy asks for none.
                pass

    def _set_alarm(self, steps: tuple[Step, ...]) -> None:
        """Plan again when time alone changes what is to be done."""
        store, now = self._store, self._timeline.now
        state, waiting = store.state, store.waiting
        alarms = [s.retry_at for s in steps if isinstance(s, Hold) and s.retry_at is not None]
        alarms += [f.retry_at for target, f in state.failures.items() if target.model in waiting]
        case = Case(state=state, catalogue=store.catalogue, policy=store.policy, now=now)
        alarms.append(next_idle_end(case))
        profiles = [store.catalogue.profiles.get(model) for model in waiting]
        if any(p is not None and len(case.copies(p.id)) < p.replicas.max > 1 for p in profiles):
            alarms.append(now + COPY_S)
        at = min((alarm for alarm in alarms if now < alarm < math.inf), default=math.inf)
        if at < self._alarm_at or self._alarm_at <= now:
            self._alarm_at = at
            if at < math.inf:
                self._timeline.at(at, partial(self._ring, at))

    def _ring(self, at: float) -> None:
        if at == self._alarm_at:
            self._alarm_at = math.inf
            self._store.reconsider()


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
