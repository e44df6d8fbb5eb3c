"""One simulation: a fleet, a catalogue, a trace and a strategy in, and what came of them out."""

import math
from collections.abc import Sequence
from functools import partial

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.reducers import from_endpoints
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import Strategy
from cortex_core.simulation.control import Control
from cortex_core.simulation.desk import Desk
from cortex_core.simulation.generate import Dice
from cortex_core.simulation.journal import Deed, Journal, Wait
from cortex_core.simulation.machines import FleetFile, LoadFault, Outage
from cortex_core.simulation.memory import Span
from cortex_core.simulation.neuron import Counts, Neuron
from cortex_core.simulation.orders import Orders
from cortex_core.simulation.store import Store
from cortex_core.simulation.timeline import Timeline
from cortex_core.simulation.trace import Arrival

REST_S = 0.01
"""Between two plans, for each model that requests wait for. A real gateway rests for nine times as
long as its last plan took, which comes to about as much with some tens of nodes."""

AFTERMATH_S = 86400.0
"""How long a simulation goes on after the last arrival, at most: everything that is waited for
has ended by then."""


class CallerResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller got."""

    caller: str
    requests: int
    refused: int
    longest_wait_s: float
    """Until its request went to a node, or was refused."""
    is_starved: bool
    """Whether that is longer than `wait_bound_s`."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one strategy came to."""

    strategy: str
    requests: int
    served: int
    refused: dict[str, int]
    """By the code of the error that callers got."""
    lost: int
    """Requests that never ended, and those that ended twice; anything but 0 is a bug."""
    hits: int
    """Requests that were served and had no load or wake to wait for."""
    hit_ratio: float
    """Share of the requests that these are."""
    ttft_p50_s: float | None
    """Time to the first token; `None` where nobody was served."""
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    longest_wait_s: float
    swaps: int
    """How often somebody had to give way."""
    loads: int
    failed_loads: int
    unloads: int
    sleeps: int
    wakes: int
    refused_for_room: int
    """Loads and wakes that a node refused, since it had no room after all."""
    cut: int
    """Requests that a drain ended, since they went on for longer than `eviction.drain_s`."""
    load_device_s: float
    """Device-seconds that loads and wakes took."""
    drain_device_s: float
    """Device-seconds from an order to give way until the memory was free."""
    starved: int
    """Callers whose worst wait was longer than `wait_bound_s`."""
    callers: tuple[CallerResult, ...]
    """By name."""
    ended_s: float
    """When the last request ended."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A result with what it was drawn from."""

    result: Result
    deeds: tuple[Deed, ...]
    """What the gateway had done, in order."""
    spans: tuple[Span, ...]
    """Who was where, in no order."""
    waits: tuple[Wait, ...]
    """Of each request, as they ended."""
    has_settled: bool
    """Whether nothing was left to happen in the end."""
    events: int
    """How much happened, for those who look at the speed."""


def simulate(
    fleet: FleetFile,
    catalogue: Catalogue,
    arrivals: Sequence[Arrival],
    dice: Dice,
    strategy: Strategy | None = None,
) -> Run:
    """Run a trace through a fleet.

    Args:
        fleet: the machines, and the gateway's settings.
        catalogue: the models, each with its size.
        arrivals: in order.
        dice: where numbers come from, for choices between equals.
        strategy: who gives way first; `None` takes the fleet's.
    """
    world = _World(fleet, catalogue, arrivals, dice, strategy)
    world.run()
    return world.outcome()


class _World:
    """Everything that a simulation consists of."""

    def __init__(
        self,
        fleet: FleetFile,
        catalogue: Catalogue,
        arrivals: Sequence[Arrival],
        dice: Dice,
        strategy: Strategy | None,
    ) -> None:
        self._fleet = fleet
        self._arrivals = arrivals
        self._timeline = timeline = Timeline()
        self._journal = journal = Journal(len(arrivals))
        self._counts = Counts()
        self._policy = fleet.eviction.policy(strategy)
        state = from_endpoints({node.name: f"simulated://{node.name}" for node in fleet.nodes})
        self._store = store = Store(state, catalogue, self._policy, timeline)
        self._neurons: dict[NodeName, Neuron] = {}
        orders = Orders(store, self._neurons, timeline, journal)
        self._control = Control(store, self._neurons, orders, fleet.report_s, timeline)
        for node in fleet.nodes:
            self._neurons[node.name] = Neuron(
                node,
                catalogue,
                faults=_faults_of(fleet, node.name),
                timeline=timeline,
                changed=self._control.changed,
                counts=self._counts,
            )
        report = self._control.report
        self._desk = Desk(store, self._neurons, fleet.queue, timeline, journal, dice, report)
        store.settle = self._settle
        self._has_settled = False
        self._plan_at = 0.0
        self._will_plan = False

    def run(self) -> None:
        """Let it all happen."""
        for name in self._neurons:
            self._control.report(name)
        for outage in self._fleet.outages:
            self._timeline.at(outage.at_s, partial(self._go, outage))
        if self._arrivals:
            self._timeline.at(self._arrivals[0].at, partial(self._arrive, 0))
        last = self._arrivals[-1].at if self._arrivals else 0.0
        self._has_settled = self._timeline.run(last + AFTERMATH_S)
        for neuron in self._neurons.values():
            neuron.close()

    def outcome(self) -> Run:
        """Return what came of it."""
        journal, counts = self._journal, self._counts
        requests, served = len(self._arrivals), journal.served
        ttft = sorted(journal.ttft_s)
        callers = self._callers()
        result = Result(
            strategy=self._policy.strategy.value,
            requests=requests,
            served=served,
            refused=dict(sorted(journal.refusals.items())),
            lost=journal.lost + journal.repeated,
            hits=journal.hits,
            hit_ratio=journal.hits / requests if requests else 0.0,
            ttft_p50_s=percentile(ttft, 0.50),
            ttft_p95_s=percentile(ttft, 0.95),
            ttft_p99_s=percentile(ttft, 0.99),
            longest_wait_s=max((wait.wait_s for wait in journal.waits), default=0.0),
            swaps=sum(bool(deed.victims) for deed in journal.deeds),
            loads=counts.loads,
            failed_loads=counts.failed_loads,
            unloads=counts.unloads,
            sleeps=counts.sleeps,
            wakes=counts.wakes,
            refused_for_room=counts.refused_for_room,
            cut=counts.cut,
            load_device_s=counts.load_device_s,
            drain_device_s=counts.drain_device_s,
            starved=sum(caller.is_starved for caller in callers),
            callers=callers,
            ended_s=journal.ended_at,
        )
        spans = [span for neuron in self._neurons.values() for span in neuron.memory.spans]
        return Run(
            result=result,
            deeds=tuple(journal.deeds),
            spans=tuple(spans),
            waits=tuple(journal.waits),
            has_settled=self._has_settled,
            events=self._timeline.events,
        )

    def _settle(self) -> None:
        """Let through whom one can, and plan for the others, unless that was done just now."""
        self._desk.let_through()
        now = self._timeline.now
        if now >= self._plan_at:
            self._plan_at = now + REST_S * len(self._store.waiting)
            self._desk.ask_again(self._control.plan())
        elif not self._will_plan:
            self._will_plan = True
            self._timeline.at(self._plan_at, self._plan_late)

    def _plan_late(self) -> None:
        self._will_plan = False
        self._settle()

    def _arrive(self, number: int) -> None:
        arrivals = self._arrivals
        if number + 1 < len(arrivals):
            self._timeline.at(arrivals[number + 1].at, partial(self._arrive, number + 1))
        self._desk.arrive(number, arrivals[number])

    def _go(self, outage: Outage) -> None:
        neuron = self._neurons[outage.node]
        if neuron.is_up:
            neuron.crash()
            self._control.lose(outage.node)
            self._timeline.at(self._timeline.now + outage.for_s, neuron.restart)

    def _callers(self) -> tuple[CallerResult, ...]:
        waits: dict[str, list[Wait]] = {}
        for wait in self._journal.waits:
            waits.setdefault(wait.caller, []).append(wait)
        return tuple(
            CallerResult(
                caller=caller,
                requests=len(mine),
                refused=sum(wait.is_refused for wait in mine),
                longest_wait_s=max(wait.wait_s for wait in mine),
                is_starved=max(wait.wait_s for wait in mine) > self._fleet.wait_bound_s,
            )
            for caller, mine in sorted(waits.items())
        )


def percentile(ordered: Sequence[float], ratio: float) -> float | None:
    """Return the nearest-rank percentile of sorted numbers; `None` of none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(ratio * len(ordered)) - 1)]


def _faults_of(fleet: FleetFile, node: NodeName) -> dict[ModelId, LoadFault]:
    """Return what goes wrong with loads on a node; what names the node comes before the rest."""
    mine = [fault for fault in fleet.load_faults if fault.node in (None, node)]
    mine.sort(key=lambda fault: fault.node is not None)
    return {fault.model: fault for fault in mine}
