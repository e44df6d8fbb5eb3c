"""Services that are no neurons: how they stand beside the nodes, and what of them is hidden."""

import json
import logging

import pytest

from cortex_core.codec import encode_json
from cortex_core.fleet.breaker import FAILURES_TO_EJECT
from cortex_core.fleet.overview import fleet_overview
from cortex_core.fleet.views import model_list
from cortex_core.ids import ModelId
from tests.fakes.gateway import MODEL, NOW, ask, gateway, replica
from tests.fakes.upstream import ScriptedNode, Wire, answers, nodes, streams, words
from tests.gateway.hosted import (
    CHAT,
    ENVIRON,
    KEY,
    MESSAGE,
    MESSAGES,
    hosted,
    message_events,
    messages,
    refuses_with,
    text,
)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize"])
async def test_what_only_engines_can_do_is_refused_for_an_anthropic_upstream(path: str) -> None:
    """Ours: said at once, with what would be right; the upstream is not asked."""
    node = ScriptedNode(answers(200, b"{}"))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        body = json.dumps({"model": "big", "prompt": "x", "input": "x"}).encode()
        answer = await ask(g.url, body, path=path)

    assert (answer.status, answer.json["error"]["param"]) == (400, "model")
    assert "/v1/chat/completions" in answer.json["error"]["message"]
    assert node.wires == []


async def test_an_upstream_that_keeps_failing_is_left_alone() -> None:
    """Ours: after five failures in a row who else has the model is asked, as with nodes."""
    broken = ScriptedNode(refuses_with(500, "api_error", "broke"))
    sound = ScriptedNode(streams(words(1)))
    failures = FAILURES_TO_EJECT
    async with (
        nodes(broken, sound),
        gateway({"z": sound.url}, [], upstreams=[hosted(broken)], environ=ENVIRON) as g,
    ):
        failed = [await ask(g.url, CHAT) for _ in range(failures)]
        is_open = [breaker.is_open(NOW()) for breaker in g.store.state.breakers.values()]
        g.report("z", replica("z", model=ModelId("big")))
        served = [await ask(g.url, {**CHAT, "stream": True}) for _ in range(failures)]

    assert {answer.status for answer in failed} == {500}
    assert is_open == [True]
    assert {answer.headers["x-cortex-node"] for answer in served} == {"z"}
    assert len(broken.wires) == failures


async def test_a_refusal_of_an_upstream_is_no_failure_of_it() -> None:
    """Ours: what callers do wrong must not keep an upstream from the others."""
    node = ScriptedNode(refuses_with(400, "invalid_request_error", "no"))
    async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
        statuses = {(await ask(g.url, CHAT)).status for _ in range(FAILURES_TO_EJECT + 1)}

    assert statuses == {400}
    assert len(node.wires) == FAILURES_TO_EJECT + 1


async def test_an_upstream_that_is_not_there_does_not_hang_anybody() -> None:
    """Ours: nobody asks it for a report, so nothing is waited for."""
    async with ScriptedNode() as node:
        gone = hosted(node)
    async with gateway({}, upstreams=[gone], environ=ENVIRON) as g:
        answer = await ask(g.url, CHAT)

    assert answer.status == 502
    assert answer.json["error"]["code"] == "upstream_unreachable"


async def test_a_redirect_of_an_upstream_is_not_followed() -> None:
    """Ours: whoever it points to would get the key."""
    async with nodes(other := ScriptedNode(answers(200, b"{}"))):
        node = ScriptedNode(answers(307, b"{}", location=other.url))
        async with nodes(node), gateway({}, upstreams=[hosted(node)], environ=ENVIRON) as g:
            answer = await ask(g.url, CHAT)

    assert answer.status == 502
    assert other.wires == []


async def test_upstreams_stand_beside_the_nodes() -> None:
    """Ours: a name decides where a request goes; aliases may point to either."""
    node, far = ScriptedNode(streams(words(1))), ScriptedNode(messages(message_events(text("a"))))
    aliases = {"large": ModelId("big")}
    async with (
        nodes(node, far),
        gateway({"a": node.url}, upstreams=[hosted(far)], environ=ENVIRON, aliases=aliases) as g,
    ):
        near = await ask(g.url, {"stream": True})
        distant = await ask(g.url, {**CHAT, "model": "large", "stream": True})

    assert (near.headers["x-cortex-node"], near.headers["x-cortex-model"]) == ("a", MODEL)
    assert (distant.headers["x-cortex-node"], distant.headers["x-cortex-model"]) == (
        "hosted",
        "big",
    )
    assert "authorization" not in node.wires[0].headers
    assert json.loads(far.wires[0].body)["model"] == "their-big"


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
async def test_the_key_is_shown_nowhere(dialect: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ours: not in logs, answers, lists or the overview, whatever becomes of the request."""
    caplog.set_level(logging.DEBUG)

    async def cuts(wire: Wire) -> None:
        wire.cut()

    node = ScriptedNode(
        answers(200, json.dumps(MESSAGE).encode()),
        refuses_with(401, "authentication_error", "bad key"),
        answers(502, b"<html>"),
        cuts,
    )
    async with nodes(node), gateway({}, upstreams=[hosted(node, dialect)], environ=ENVIRON) as g:
        got = [await ask(g.url, CHAT) for _ in range(3)]
        got.append(await ask(g.url, json.dumps(MESSAGES).encode(), path="/v1/messages"))
        state, catalogue = g.store.state, g.store.catalogue

    shown = encode_json(fleet_overview(state, catalogue))
    shown += encode_json(model_list(state, catalogue, 0))
    shown += b"".join(answer.body + str(answer.headers).encode() for answer in got)
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert any(KEY in str(wire.headers) for wire in node.wires)
    assert b"hosted" in shown
    assert "hosted" in logged
    assert KEY.encode() not in shown
    assert KEY not in logged
