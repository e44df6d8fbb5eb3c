"""`x-cortex-timing: 1`: the stages of a request in the head of its answer."""

import re

import pytest

from cortex_core.replica import ReplicaStatus
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import ask, gateway, replica
from tests.fakes.upstream import Script, ScriptedNode, answers, cuts, nodes, streams, words

ASKED = {"x-cortex-timing": "1"}


def stages_of(header: str) -> dict[str, float]:
    """Parse `server-timing` (W3C Server Timing, section 4); values are milliseconds."""
    found = [re.fullmatch(r"(\w+);dur=(\d+\.\d{3})", entry) for entry in header.split(", ")]
    return {match[1]: float(match[2]) for match in found if match is not None}


@pytest.mark.parametrize(
    ("script", "is_stream", "status"),
    [
        (answers(200, b"{}"), False, 200),
        (answers(400, b'{"error":{"message":"no"}}'), False, 400),
        (streams(words(2)), True, 200),
    ],
)
async def test_stages_are_told_when_asked_for(script: Script, is_stream: bool, status: int) -> None:
    """Ours: all of them for an answer that is whole, else those that are over."""
    async with nodes(node := ScriptedNode(script)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {"stream": is_stream}, headers=ASKED)

    assert answer.status == status
    stages = stages_of(answer.headers["server-timing"])
    assert list(stages) == ["queue", "load", "first_byte", *([] if is_stream else ["total"])]
    whole = stages.pop("total", sum(stages.values()))
    assert sum(stages.values()) <= whole + 0.003


async def test_error_of_ours_tells_how_long_it_took() -> None:
    """Ours: no node answered."""
    async with nodes(node := ScriptedNode(cuts)), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {}, headers=ASKED)

    assert answer.status == 502
    assert list(stages_of(answer.headers["server-timing"])) == ["queue", "load", "total"]


async def test_wait_that_is_shown_leaves_them_out() -> None:
    """Ours: the head is gone before anything is over."""
    loading = [replica("a", ReplicaStatus.LOADING)]
    hasty = Timeouts(hold_s=0.1, heartbeat_s=0.02)
    async with (
        nodes(node := ScriptedNode(streams(words(2)))),
        gateway({"a": node.url}, loading, timeouts=hasty) as g,
    ):
        answer = await ask(g.url, {"stream": True}, headers=ASKED)

    assert "server-timing" not in answer.headers


async def test_nobody_gets_them_unasked_and_the_node_does_not_hear_of_it() -> None:
    """Contract: headers of ours stay at the gateway."""
    node = ScriptedNode(answers(200, b"{}"), answers(200, b"{}"))
    async with nodes(node), gateway({"a": node.url}) as g:
        unasked = await ask(g.url, {})
        await ask(g.url, {}, headers=ASKED)

    assert "server-timing" not in unasked.headers
    assert len(node.wires) == 2
    assert all("x-cortex-timing" not in wire.headers for wire in node.wires)


async def test_other_values_are_refused() -> None:
    """Ours: as for the other headers of ours."""
    async with nodes(node := ScriptedNode()), gateway({"a": node.url}) as g:
        answer = await ask(g.url, {}, headers={"x-cortex-timing": "yes"})

    assert answer.status == 400
    assert answer.json["error"]["param"] == "x-cortex-timing"
