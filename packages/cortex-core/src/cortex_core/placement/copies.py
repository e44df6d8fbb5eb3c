"""How many copies of a model there are, and whether one more is worth what it costs."""

from collections.abc import Mapping

import msgspec

from cortex_core.fleet.sizes import estimated, sized
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId
from cortex_core.placement.case import Case
from cortex_core.placement.policy import HORIZON_S
from cortex_core.placement.steps import Evict, Load, Wake
from cortex_core.placement.times import load_s, wake_s

REQUEST_S = 10.0
"""What a request is guessed to take where none was measured."""


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a model."""

    waiting: int
    """Requests that wait at the gateway."""
    in_flight: int
    """Requests that are with its copies, together; with requests waiting that is all they take."""
    arrivals_per_s: float = 0.0
    request_s: float = REQUEST_S
    """Seconds from the beginning of a request to its end."""


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """What one more copy of a model would bring, and cost."""

    saved_s: float
    """Seconds that its requests wait less, together, over `HORIZON_S`."""
    cost_s: float
    """Seconds that the callers of those who give way lose, and that its own coming takes."""

    @property
    def is_worth_it(self) -> bool:
        """Whether it saves more than it costs."""
        return self.saved_s > self.cost_s


def weigh_copy(queue: Queue, copies: int, arrival_s: float, lost_s: float) -> Purchase:
    """Return what one more copy would bring.

    The queue is taken for a fluid: requests come in at their rate, and each copy takes as many a
    second as it does now.

    Args:
        queue: what waits and is under way.
        copies: how many there are, >= 1.
        arrival_s: seconds until the copy serves.
        lost_s: seconds that callers of those who give way are expected to lose.
    """
    arrival_s = min(arrival_s, HORIZON_S)
    served = max(queue.in_flight, copies) / max(queue.request_s, 1e-3)
    with_it = served * (copies + 1) / copies
    waiting, rate = float(queue.waiting), queue.arrivals_per_s
    without_it = _waited(waiting, rate - served, HORIZON_S)
    before = _waited(waiting, rate - served, arrival_s)
    left = max(0.0, waiting + (rate - served) * arrival_s)
    after = _waited(left, rate - with_it, HORIZON_S - arrival_s)
    return Purchase(saved_s=without_it - before - after, cost_s=arrival_s + lost_s)


def purchase_of(case: Case, step: Load | Wake | Evict, queue: Queue, copies: int) -> Purchase:
    """Return what the copy that `step` leads to would bring; that of a base is one of its adapter."""
    state = case.state
    name = step.swap.node if isinstance(step, Evict) else step.replica.node
    model = step.model if isinstance(step, Evict) else step.replica.model
    node = state.nodes[name]
    profile = sized(state, estimated(state, case.catalogue.profiles[model]), node)
    replica = node.replicas.get(model)
    known = load_s(node, profile)
    if replica is not None and replica.sleep_level is not None:
        known = wake_s(node, profile, replica, replica.sleep_level)
    lost_s = step.lost_s if isinstance(step, Evict) else 0.0
    return weigh_copy(queue, copies, known or 0.0, lost_s)


def queue_of(
    case: Case, model: ModelId, waiting: int, request_times: Mapping[ModelId, float]
) -> Queue:
    """Return what is to be done for a model, as the reports and the gateway know it."""
    return Queue(
        waiting=waiting,
        in_flight=in_flight_of(case.state, model),
        arrivals_per_s=case.rates.get(model, 0.0),
        request_s=request_times.get(model, REQUEST_S),
    )


def in_flight_of(state: FleetState, model: ModelId) -> int:
    """Return the requests that are with the copies of a model, from every gateway."""
    return sum(replica.in_flight + replica.queued for _, replica in state.replicas_of(model))


def _waited(waiting: float, growth: float, span_s: float) -> float:
    """Return the area under a queue that grows by `growth` a second and never below nothing."""
    if span_s <= 0:
        return 0.0
    if growth < 0:
        span_s = min(span_s, waiting / -growth)
    return waiting * span_s + growth * span_s * span_s / 2
