"""`cortex explain` against one gateway's answer."""

import json

import pytest

from cortex_core.codec import encode_json
from cortex_core.ids import ModelId, NodeName
from cortex_core.routing.explain import Explanation, NodeOutlook, Outcome
from tests.cli.conftest import Run, Serve

EVICT = Explanation(
    model=ModelId("org/model"),
    outcome=Outcome.EVICT,
    node=NodeName("beast"),
    victims=(ModelId("org/old"),),
    expected_s=12.0,
    summary="org/model on beast: org/old would give way",
    nodes=(
        NodeOutlook(
            node=NodeName("beast"), outcome=Outcome.EVICT, reason="org/old\x1b[2J gives way"
        ),
        NodeOutlook(node=NodeName("tiny"), outcome=Outcome.REFUSE, reason="it is too small"),
    ),
)
REFUSE = Explanation(
    model=ModelId("org/model"), outcome=Outcome.REFUSE, summary="org/model cannot be served now"
)
UNKNOWN = b'{"error":{"message":"the model \'x\' does not exist","code":"model_not_found"}}'


def test_what_would_happen_is_told_node_by_node(cortex: Run, serve: Serve) -> None:
    """Issue: in words, per node; the terminal obeys nothing that comes from elsewhere."""
    done = cortex("explain", "org/model", "--endpoint", serve(200, encode_json(EVICT)))

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "evict: org/model on beast: org/old would give way"
    assert lines[2].split() == ["NODE", "OUTCOME", "WHY"]
    assert lines[4].split(maxsplit=2) == ["tiny", "refuse", "it is too small"]
    assert "\x1b" not in done.stdout


def test_json_is_what_the_gateway_said(cortex: Run, serve: Serve) -> None:
    """Ours: `--json`."""
    body = encode_json(EVICT)
    done = cortex("explain", "org/model", "--json", "--endpoint", serve(200, body))

    assert json.loads(done.stdout) == json.loads(body)


@pytest.mark.parametrize(
    ("status", "body", "out", "error"),
    [
        (200, encode_json(REFUSE), "refuse: org/model cannot be served now\n", ""),
        (404, UNKNOWN, "", "cortex: the model 'x' does not exist\n"),
    ],
)
def test_what_cannot_be_served_is_status_one(
    cortex: Run, serve: Serve, status: int, body: bytes, out: str, error: str
) -> None:
    """Contract: 1 the fleet or an answer is not fine."""
    done = cortex("explain", "org/model", "--endpoint", serve(status, body))

    assert (done.returncode, done.stdout, done.stderr) == (1, out, error)
