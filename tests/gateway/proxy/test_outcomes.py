"""Every dialect is counted and told alike, whatever becomes of a request."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from cortex_core.replica import ReplicaStatus
from cortex_gateway.metrics import UNKNOWN, GatewayMetrics
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import MODEL, Gateway, ask, calling, gateway, replica
from tests.fakes.upstream import (
    Script,
    ScriptedNode,
    Wire,
    answers,
    cuts,
    hangs,
    nodes,
    streams,
    words,
)

HASTY = Timeouts(first_byte_s=0.2, idle_s=0.2, hold_s=0.1, heartbeat_s=0.02)

TALK = {"messages": [{"role": "user", "content": "hi"}]}
CACHED = {"prompt_tokens_details": {"cached_tokens": 2}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, **CACHED}
WORDS = [*words(3)[:-1], {**words(3)[-1], "usage": USAGE}]
SAID = {"role": "assistant", "content": "w0 w1 w2"}
CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "usage": USAGE} | {
    "choices": [{"index": 0, "message": SAID, "finish_reason": "stop"}]
}
TEXTS = [
    {"id": "t", "object": "text_completion", "created": 1, "model": MODEL, "choices": choices}
    for choices in (
        [{"index": 0, "text": "w0 ", "finish_reason": None}],
        [{"index": 0, "text": "w1 w2", "finish_reason": "stop"}],
    )
]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A way to ask, and what an engine answers to it."""

    path: str
    fields: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]] = ()
    """Of a stream; empty where the answer is none."""
    answer: Mapping[str, Any] = {}
    has_completion: bool = True
    """Else the engine counts a prompt alone."""

    @property
    def body(self) -> dict[str, object]:
        """What is sent beside the model."""
        return {"messages": None, "stream": bool(self.events), **self.fields}

    @property
    def ok(self) -> Script:
        """What an engine does."""
        if self.events:
            return streams(self.events)
        return answers(200, msgspec.json.encode(self.answer))


PROMPT = {"object": "list", "data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3, **CACHED}}
MESSAGES = {**TALK, "max_tokens": 9}
PLAIN = {**TEXTS[1], "usage": USAGE}
WAYS = {
    "chat": Way(path="/v1/chat/completions", fields=TALK, answer=CHAT),
    "chat stream": Way(path="/v1/chat/completions", fields=TALK, events=WORDS),
    "completions": Way(path="/v1/completions", fields={"prompt": "hi"}, answer=PLAIN),
    "completions stream": Way(
        path="/v1/completions",
        fields={"prompt": "hi"},
        events=[*TEXTS, {**TEXTS[0], "choices": [], "usage": USAGE}],
    ),
    "messages": Way(path="/v1/messages", fields=MESSAGES, answer=CHAT),
    "messages stream": Way(path="/v1/messages", fields=MESSAGES, events=WORDS),
    "responses": Way(path="/v1/responses", fields={"input": "hi"}, answer=CHAT),
    "responses stream": Way(path="/v1/responses", fields={"input": "hi"}, events=WORDS),
    "ollama chat": Way(path="/api/chat", fields=TALK, answer=CHAT),
    "ollama chat stream": Way(path="/api/chat", fields=TALK, events=WORDS),
    "ollama generate stream": Way(path="/api/generate", fields={"prompt": "hi"}, events=WORDS),
    "embeddings": Way(
        path="/v1/embeddings", fields={"input": "hi"}, answer=PROMPT, has_completion=False
    ),
    "rerank": Way(
        path="/v1/rerank",
        fields={"query": "a", "documents": ["b"]},
        answer=PROMPT,
        has_completion=False,
    ),
    "score": Way(
        path="/v1/score",
        fields={"text_1": "a", "text_2": "b"},
        answer=PROMPT,
        has_completion=False,
    ),
}
STREAMS = [name for name, way in WAYS.items() if way.events]


def asked(way: Way) -> dict[str, object]:
    """Return the whole body of a request."""
    return {name: value for name, value in way.body.items() if value is not None}


async def send(g: Gateway, way: Way, **more: object) -> int:
    """Ask and return the status."""
    body = msgspec.json.encode({"model": MODEL, **asked(way), **more})
    return (await ask(g.url, body, path=way.path)).status


async def series(g: Gateway) -> dict[str, dict[str, float]]:
    """Return the samples of the one request that there was, by series and by labels."""
    registry, figures = CollectorRegistry(), await g.recorder.request()
    metrics = GatewayMetrics(registry)
    for attempt in g.recorder.attempts:
        metrics.attempted(attempt)
    if figures["has_begun"]:
        metrics.began(figures["model"])
    metrics.ended(**figures)
    assert len(g.recorder.requests) == 1
    found: dict[str, dict[str, float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created", "_sum")):
                labels = " ".join(sample.labels.values())
                found.setdefault(sample.name, {})[labels] = sample.value
    return found


HERE = f"{MODEL} a"
NOWHERE = f"{MODEL} {UNKNOWN}"


def line_of(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Return the one line about a request."""
    (line,) = [record for record in caplog.records if record.message == "request ended"]
    return vars(line)


@pytest.mark.parametrize("name", WAYS)
async def test_request_that_is_answered(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Contract: "all dialects are counted alike", in every series and the line."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    way = WAYS[name]
    async with nodes(node := ScriptedNode(way.ok)), gateway({"a": node.url}) as g:
        assert await send(g, way) == 200
        found = await series(g)

    assert found["cortex_requests_total"] == {f"{HERE} ok": 1}
    assert "cortex_request_errors_total" not in found
    assert "cortex_rejections_total" not in found
    assert found["cortex_upstream_attempts_total"] == {"ok": 1}
    assert found["cortex_request_duration_seconds_count"] == {HERE: 1}
    assert found["cortex_queue_seconds_count"] == {HERE: 1}
    assert found["cortex_requests_in_flight"] == {MODEL: 0}
    assert found["cortex_prompt_tokens_total"] == {HERE: 3}
    assert found["cortex_cached_prompt_tokens_total"] == {HERE: 2}
    completion = {HERE: 3.0} if way.has_completion else None
    assert found.get("cortex_completion_tokens_total") == completion
    assert ("cortex_tokens_per_second_count" in found) is way.has_completion
    assert ("cortex_time_to_first_token_seconds_count" in found) is bool(way.events)
    assert ("cortex_inter_token_seconds_count" in found) is bool(way.events)
    line = line_of(caplog)
    assert (line["outcome"], line["status"], line["path"]) == ("ok", 200, way.path)
    tokens = (line["prompt_tokens"], line["cached_prompt_tokens"], line["completion_tokens"])
    assert tokens == (3, 2, 3 if way.has_completion else None)


async def breaks_off(wire: Wire) -> None:
    """Break in the middle of a stream."""
    await wire.begin_stream()
    await wire.event(WORDS[1])
    wire.cut()


async def falls_silent(wire: Wire) -> None:
    """Say nothing more in the middle of a stream."""
    await wire.begin_stream()
    await wire.event(WORDS[1])
    await wire.closed.wait()


async def errs(wire: Wire) -> None:
    """Tell of an error in the middle of a stream."""
    await wire.begin_stream()
    await wire.event(WORDS[1])
    await wire.event({"error": {"message": "no", "type": "server_error", "code": None}})
    await wire.end_stream()


BAD = b'{"error":{"message":"no","type":"x","param":null,"code":null}}'

FAILURES: dict[str, tuple[Script, str, str]] = {
    "refused": (answers(400, BAD), "refused_by_node", "ok"),
    "failed": (answers(500, BAD), "failed_at_node", "ok"),
    "cut": (cuts, "upstream_cut", "cut_before_answer"),
    "silent": (hangs, "timeout", "timeout"),
}
"""What a node does, how the request ends, and how the attempt does."""

BROKEN: dict[str, tuple[Script, str, str]] = {
    "broken off": (breaks_off, "upstream_cut", "cut_mid_answer"),
    "silent": (falls_silent, "timeout", "timeout"),
    "told": (errs, "failed_at_node", "ok"),
}
"""The same, of a stream that has begun."""


async def failed(
    way: Way, failure: tuple[Script, str, str], caplog: pytest.LogCaptureFixture
) -> dict[str, dict[str, float]]:
    """Have a request fail at its node, and return the series."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    script, outcome, attempt = failure
    # A busy machine may be late with an answer that is given.
    timeouts = HASTY if outcome == "timeout" else None
    async with (
        nodes(node := ScriptedNode(script)),
        gateway({"a": node.url}, timeouts=timeouts) as g,
    ):
        await send(g, way)
        found = await series(g)

    assert found["cortex_requests_total"] == {f"{HERE} {outcome}": 1}
    assert found["cortex_request_errors_total"] == {HERE: 1}
    assert "cortex_rejections_total" not in found
    assert set(found["cortex_upstream_attempts_total"]) == {attempt}
    assert found["cortex_request_duration_seconds_count"] == {HERE: 1}
    assert found["cortex_queue_seconds_count"] == {HERE: 1}
    assert found["cortex_requests_in_flight"] == {MODEL: 0}
    assert (line_of(caplog)["outcome"], line_of(caplog)["path"]) == (outcome, way.path)
    return found


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("failure", FAILURES)
async def test_request_that_fails_at_its_node(
    name: str, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Contract: counted whatever becomes of it, with the outcome that it had."""
    found = await failed(WAYS[name], FAILURES[failure], caplog)

    assert "cortex_time_to_first_token_seconds_count" not in found


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("failure", BROKEN)
async def test_stream_that_ends_badly(
    name: str, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Contract: a cut stream never looks complete, in the figures either."""
    await failed(WAYS[name], BROKEN[failure], caplog)


@pytest.mark.parametrize("name", WAYS)
async def test_caller_who_hangs_up(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ours: a request like others, but no error of anybody's."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    way = WAYS[name]
    async with (
        nodes(node := ScriptedNode(hangs)),
        gateway({"a": node.url}) as g,
        calling(g.url, way.body, path=way.path) as caller,
    ):
        async with asyncio.timeout(5):
            await node.request()
        caller.leave()
        found = await series(g)

    assert found["cortex_requests_total"] == {f"{HERE} client_gone": 1}
    assert "cortex_request_errors_total" not in found
    assert found["cortex_request_duration_seconds_count"] == {HERE: 1}
    assert found["cortex_requests_in_flight"] == {MODEL: 0}
    assert (line_of(caplog)["outcome"], line_of(caplog)["status"]) == ("client_gone", 499)


@pytest.mark.parametrize("name", WAYS)
async def test_model_that_nobody_knows(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Contract: `unknown`, so that callers add no series."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    async with gateway({"a": "http://127.0.0.1:9"}) as g:
        assert await send(g, WAYS[name], model="org/none") == 404
        found = await series(g)

    assert found["cortex_requests_total"] == {f"{UNKNOWN} {UNKNOWN} model_not_found": 1}
    assert found["cortex_rejections_total"] == {"model_not_found": 1}
    assert "cortex_requests_in_flight" not in found
    assert line_of(caplog)["outcome"] == "model_not_found"


@pytest.mark.parametrize("name", WAYS)
async def test_model_that_is_not_there_in_time(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ours: it is known which model it was, and that it reached no node."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    loading = [replica("a", ReplicaStatus.LOADING)]
    async with gateway({"a": "http://127.0.0.1:9"}, loading, timeouts=HASTY) as g:
        await send(g, WAYS[name])
        found = await series(g)

    assert found["cortex_requests_total"] == {f"{NOWHERE} model_loading": 1}
    assert found["cortex_request_errors_total"] == {NOWHERE: 1}
    assert found["cortex_rejections_total"] == {"model_loading": 1}
    assert "cortex_queue_seconds_count" not in found
    assert found["cortex_requests_in_flight"] == {MODEL: 0}
    assert line_of(caplog)["outcome"] == "model_loading"


@pytest.mark.parametrize("path", sorted({way.path for way in WAYS.values()}))
async def test_body_that_is_none(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ours: what cannot be read is a request too."""
    caplog.set_level(logging.INFO, "cortex_gateway")
    async with gateway({"a": "http://127.0.0.1:9"}) as g:
        answer = await ask(g.url, b"{", path=path)
        found = await series(g)

    assert answer.status == 400
    assert found["cortex_requests_total"] == {f"{UNKNOWN} {UNKNOWN} invalid_json": 1}
    assert found["cortex_rejections_total"] == {"invalid_json": 1}
    assert line_of(caplog)["path"] == path
