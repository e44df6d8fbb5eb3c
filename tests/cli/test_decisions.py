"""`cortex decisions` against one gateway's answer."""

import json

from cortex_core.codec import encode_json
from cortex_core.ids import ModelId, NodeName
from cortex_core.routing.record import Considered, DecisionKind, DecisionsAnswer, Record
from tests.cli.conftest import Run, Serve

MODEL, OLD, NODE = ModelId("org/model"), ModelId("org/old"), NodeName("beast")
EVICT = Record(
    at=1_700_000_000.25,
    kind=DecisionKind.EVICT,
    model=MODEL,
    node=NODE,
    reason="room is made\x1b[2J",
    victims=(OLD,),
)
FOUND = DecisionsAnswer(
    decisions=(
        Record(
            at=1_700_000_009.0,
            kind=DecisionKind.ROUTE,
            model=MODEL,
            node=NODE,
            request_id="req_1",
            reason="it is less busy",
            considered=(
                Considered(node=NODE, score=1.0),
                Considered(node=NodeName("tiny"), rejected="it is loading"),
            ),
        ),
        Record(
            at=1_700_000_003.0, kind=DecisionKind.LOAD, model=MODEL, node=NODE, took_s=3, error="x"
        ),
        Record(at=1_700_000_002.0, kind=DecisionKind.EVICT, model=MODEL, node=NODE, took_s=1.75),
        EVICT,
    )
)


def test_decisions_are_told_in_order_with_their_reasons(cortex: Run, serve: Serve) -> None:
    """Issue: who was moved, what it cost, why not elsewhere; a terminal obeys nothing of it."""
    done = cortex("decisions", "--endpoint", serve(200, encode_json(FOUND)))

    assert (done.returncode, done.stderr) == (0, "")
    header, evict, evicted, failed, route = done.stdout.splitlines()
    assert header.split() == ["AT", "WHAT", "MODEL", "NODE", "WHY"]
    assert evict.split()[:4] == ["22:13:20.250Z", "evict", MODEL, NODE]
    assert evict.endswith("; gives way: org/old")
    assert "done in 1.8 s" in evicted
    assert "failed after 3.0 s: x" in failed
    assert route.endswith("it is less busy; not tiny: it is loading; [req_1]")
    assert "\x1b" not in done.stdout


def test_json_is_what_the_gateway_said(cortex: Run, serve: Serve) -> None:
    """Ours: `--json`."""
    body = encode_json(FOUND)

    done = cortex("decisions", "--json", "--model", "org/model", "--endpoint", serve(200, body))

    assert json.loads(done.stdout) == json.loads(body)


def test_nothing_is_said_as_well(cortex: Run, serve: Serve) -> None:
    done = cortex("decisions", "--endpoint", serve(200, encode_json(DecisionsAnswer())))

    assert done.stdout == "nothing was decided\n"
