"""The search for a replica: what held requests share, and what a failure becomes."""

import pytest

from cortex_core.catalogue import Catalogue
from cortex_core.ids import NodeName
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.retry import Failure
from cortex_core.routing.route import Refuse, Serve, Wait
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.search import REPORT_S, WAIT_HOLDS_S, Search, Waits, error_of
from tests.fakes.gateway import MODEL, fleet, replica

NOTHING = Catalogue()
URL = {"a": "http://127.0.0.1:1"}


def test_held_requests_share_a_decision_for_a_snapshot_and_a_while() -> None:
    """Ours: a snapshot with a thousand waiters is routed once, and time is not forgotten."""
    waits = Waits()
    wait = Wait(model=MODEL, reason="it loads")
    assert waits.known(1, MODEL, now=0) is None
    waits.note(wait)

    seen = [
        waits.known(1, MODEL, now=WAIT_HOLDS_S / 2),
        waits.known(1, MODEL, now=WAIT_HOLDS_S),
        waits.known(2, MODEL, now=0),
    ]

    assert seen == [wait, None, None]


def test_refused_request_waits_for_a_report_but_not_for_ever() -> None:
    """Ours: the node has a moment to say what it has; then what is known decides."""
    state = fleet(URL, [replica("a", ReplicaStatus.FAILED)])
    search = Search(MODEL, cold_ok=False, waits=Waits())
    search.doubt(NodeName("a"), state, now=0)

    early = search.decide(state, NOTHING, InFlight(), now=REPORT_S / 2)
    late = search.decide(state, NOTHING, InFlight(), now=REPORT_S)

    assert isinstance(early, Wait)
    assert isinstance(late, Refuse)
    assert not search.is_cold


def test_failed_attempt_is_what_the_caller_is_told_of() -> None:
    """Ours: with nowhere else to go the caller learns how it failed, not that it ran out."""
    state = fleet(URL, [replica("a")])
    search = Search(MODEL, cold_ok=True, waits=Waits())
    before = search.decide(state, NOTHING, InFlight(), now=0)
    assert isinstance(before, Serve)
    search.exclude(before.replica, UpstreamFailure(Failure.CONNECT, "refused"))

    after = search.decide(state, NOTHING, InFlight(), now=0)

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
