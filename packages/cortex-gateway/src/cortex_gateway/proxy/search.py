"""Looking for a replica for one request: what was tried, who is asked again, what comes next."""

from cortex_core.catalogue import Catalogue
from cortex_core.errors import RequestError, UpstreamCutError, UpstreamError, UpstreamTimeoutError
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.retry import Failure
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait, route
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.proxy.inflight import InFlight

REPORT_S = 2.0
"""How long a node that refused a request is given to say what it has; a report takes
milliseconds, and a node that cannot be reached fails within the time for a connection."""


WAIT_HOLDS_S = 1.0
"""How long a wait that was decided holds for one snapshot; time alone may change it too, when
a cool-down ends."""


class Waits:
    """Waits that were decided, by model, so that a thousand held requests ask once a snapshot."""

    def __init__(self) -> None:
        self._revision = -1
        self._until = 0.0
        self._waits: dict[ModelId, Wait] = {}

    def known(self, revision: int, model: ModelId, now: float) -> Wait | None:
        """Return the wait for `model`, if it was decided for this snapshot just now."""
        if revision != self._revision or now >= self._until:
            self._waits.clear()
            self._revision, self._until = revision, now + WAIT_HOLDS_S
        return self._waits.get(model)

    def note(self, wait: Wait) -> None:
        """Keep a wait that was decided right after `known` had none."""
        self._waits[wait.model] = wait


class Search:
    """State of the search of one request. The decisions themselves are `route`'s.

    Args:
        model: what is searched for.
        cold_ok: False refuses instead of waiting for a load.
        waits: shared by all requests.
    """

    def __init__(self, model: ModelId, *, cold_ok: bool, waits: Waits) -> None:
        self.model = model
        self._waits = waits
        self.attempts = 0
        """Attempts that were made and failed."""
        self.is_cold = False
        """Whether a load had to be waited for."""
        self._cold_ok = cold_ok
        self._tried: frozenset[ReplicaId] = frozenset()
        self._error: RequestError | None = None
        self._doubted: dict[NodeName, tuple[float | None, float]] = {}

    def decide(
        self, state: FleetState, catalogue: Catalogue, in_flight: InFlight, now: float
    ) -> Decision:
        """Return what to do now: a refusal after a failed attempt carries that one's error."""
        is_plain = self._cold_ok and not self._tried and not self._doubted
        known = self._waits.known(state.revision, self.model, now) if is_plain else None
        if known is not None:
            self.is_cold |= known.is_load
            return known
        decision = route(
            state,
            catalogue,
            self.model,
            hints=RouteHints(excluded=self._tried, cold_ok=self._cold_ok),
            in_flight=in_flight.replicas,
            now=now,
        )
        if isinstance(decision, Serve):
            return decision
        if self._awaits_report(state, now):
            return Wait(
                model=self.model, reason="the node that had it is asked again", is_load=False
            )
        if isinstance(decision, Refuse):
            return Refuse(error=self._error or decision.error, candidates=decision.candidates)
        self.is_cold |= decision.is_load
        if is_plain:
            self._waits.note(decision)
        return decision

    def exclude(self, replica: ReplicaId, failure: UpstreamFailure) -> None:
        """Note that an attempt at `replica` failed, so that the next one is made elsewhere."""
        self.attempts += 1
        self._tried |= {replica}
        self._error = error_of(failure)

    def doubt(self, node: NodeName, state: FleetState, now: float) -> None:
        """Note that `node` refused what it was believed to serve, and will report anew."""
        if node in state.nodes:  # the settings may have taken it out meanwhile
            self._doubted[node] = (state.nodes[node].reported_at, now + REPORT_S)

    def _awaits_report(self, state: FleetState, now: float) -> bool:
        """Whether the next report of a doubted node may still change everything."""
        return any(
            now < until and node in state.nodes and state.nodes[node].reported_at == before
            for node, (before, until) in self._doubted.items()
        )


def error_of(failure: UpstreamFailure) -> RequestError:
    """Return what the caller is told of a failed attempt."""
    match failure.failure:
        case Failure.TIMEOUT:
            return UpstreamTimeoutError("the node was silent for too long")
        case Failure.CUT_BEFORE_ANSWER | Failure.CUT_MID_ANSWER:
            return UpstreamCutError("the node's answer ended before it was complete")
        case Failure.CONNECT | Failure.NOT_ADMITTED:
            return UpstreamError("the node could not be reached")
        case Failure.BAD_ANSWER:
            return UpstreamError("the node sent something that is no HTTP answer")
