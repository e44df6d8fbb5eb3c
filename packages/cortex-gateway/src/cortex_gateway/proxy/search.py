"""Looking for a replica for one request: what was tried, who is asked again, what comes next."""

from collections.abc import Callable

import msgspec

from cortex_core.errors import (
    EngineError,
    RequestError,
    UpstreamCutError,
    UpstreamError,
    UpstreamTimeoutError,
)
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.retry import Failure
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait
from cortex_gateway.ports import UpstreamFailure

REPORT_S = 2.0
"""How long a node that refused a request is given to say what it has; a report takes
milliseconds, and a node that cannot be reached fails within the time for a connection."""


class Search:
    """State of the search of one request. The decisions themselves are `route`'s.

    Args:
        model: what is searched for.
        hints: what the caller says about it.
    """

    def __init__(self, model: ModelId, hints: RouteHints) -> None:
        self.model = model
        self.attempts = 0
        """Attempts that were made and failed."""
        self.deaths = 0
        """Engines that died while they worked on it."""
        self.is_cold = False
        """Whether a load had to be waited for."""
        self._hints = hints
        self._error: RequestError | None = None
        self._doubted: dict[NodeName, tuple[float | None, float]] = {}

    @property
    def has_begun(self) -> bool:
        """Whether it was sent somewhere already; its turn in the line is over then."""
        return bool(self._hints.excluded or self._doubted)

    @property
    def hints(self) -> RouteHints:
        """What is known about where it may go."""
        if not self.has_begun:
            return self._hints
        return msgspec.structs.replace(self._hints, has_turn=True)

    def decide(
        self,
        state: FleetState,
        choose: Callable[[ModelId, RouteHints], Decision],
        now: float,
    ) -> Decision:
        """Return what to do now: a refusal after a failed attempt carries that one's error.

        Args:
            state: what `choose` decides from.
            choose: decides where a request for a model goes.
            now: monotonic seconds.
        """
        decision = choose(self.model, self.hints)
        if isinstance(decision, Serve):
            return decision
        if self._awaits_report(state, now):
            return Wait(
                model=self.model, reason="the node that had it is asked again", is_load=False
            )
        if isinstance(decision, Refuse):
            return Refuse(error=self._error or decision.error, candidates=decision.candidates)
        self.is_cold |= decision.is_load
        return decision

    def exclude(self, replica: ReplicaId, failure: UpstreamFailure) -> None:
        """Note that an attempt at `replica` failed, so that the next one is made elsewhere."""
        self.attempts += 1
        self._error = error_of(failure)
        if failure.failure is Failure.ENGINE_DIED:
            # It is coming back, and may be the only one.
            self.deaths += 1
            return
        excluded = self._hints.excluded | {replica}
        self._hints = msgspec.structs.replace(self._hints, excluded=excluded)

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
        case Failure.ENGINE_DIED:
            return EngineError("the engine failed while it worked on the request")
        case Failure.BAD_ANSWER:
            return UpstreamError("the node sent something that is no HTTP answer")
