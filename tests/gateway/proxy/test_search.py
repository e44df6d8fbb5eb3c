"""The search for a replica: what held requests share, and what a failure becomes."""

from collections.abc import Callable

import pytest

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.retry import Failure
from cortex_core.routing.route import Decision, Refuse, RouteHints, Serve, Wait, route
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.proxy.search import REPORT_S, Search, error_of
from tests.fakes.gateway import MODEL, fleet, replica

NOTHING = Catalogue()
URL = {"a": "http://127.0.0.1:1"}


def choosing(state: FleetState) -> Callable[[ModelId, RouteHints], Decision]:
    return lambda model, hints: route(state, NOTHING, model, hints=hints, in_flight={}, now=0)


def test_refused_request_waits_for_a_report_but_not_for_ever() -> None:
    """Ours: the node has a moment to say what it has; then what is known decides."""
    state = fleet(URL, [replica("a", ReplicaStatus.FAILED)])
    search = Search(MODEL, RouteHints(cold_ok=False))
    search.doubt(NodeName("a"), state, now=0)

    early = search.decide(state, choosing(state), now=REPORT_S / 2)
    late = search.decide(state, choosing(state), now=REPORT_S)

    assert isinstance(early, Wait)
    assert isinstance(late, Refuse)
    assert not search.is_cold


def test_failed_attempt_is_what_the_caller_is_told_of() -> None:
    """Ours: with nowhere else to go the caller learns how it failed, not that it ran out."""
    state = fleet(URL, [replica("a")])
    search = Search(MODEL, RouteHints())
    before = search.decide(state, choosing(state), now=0)
    assert isinstance(before, Serve)
    search.exclude(before.replica, UpstreamFailure(Failure.CONNECT, "refused"))

    after = search.decide(state, choosing(state), now=0)

    assert isinstance(after, Refuse)
    assert after.error.code == "upstream_unreachable"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Failure.CONNECT, 502, "upstream_unreachable"),
        (Failure.CUT_BEFORE_ANSWER, 502, "upstream_cut"),
        (Failure.CUT_MID_ANSWER, 502, "upstream_cut"),
        (Failure.NOT_ADMITTED, 502, "upstream_unreachable"),
        (Failure.BAD_ANSWER, 502, "upstream_unreachable"),
        (Failure.TIMEOUT, 504, "timeout"),
    ],
)
def test_every_failure_has_its_row_of_the_error_table(
    failure: Failure, status: int, code: str
) -> None:
    """Contract: the error table's rows for nodes; the reason stays in the log."""
    error = error_of(UpstreamFailure(failure, "secret address"))

    assert (error.status, error.code) == (status, code)
    assert "secret" not in error.message
