"""`x-cortex-progress: reasoning`: what a request waits for, as text that people see."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from cortex_core.replica import LoadProgress, ReplicaStatus
from cortex_gateway.settings import Timeouts
from tests.fakes.gateway import MODEL, TO_A, Gateway, ask, calling, gateway, replica
from tests.fakes.upstream import DONE, ScriptedNode, cuts, nodes, refuses, streams, words

HEADERS = {"x-cortex-progress": "reasoning"}
SAID = "loading org/model: weights, 1024 of 2048 MiB\n"
ANSWER = "w0 w1 w2 "
PROGRESS = LoadProgress(stage="weights", done_bytes=1 << 30, total_bytes=2 << 30)
QUICK = Timeouts(heartbeat_s=0.02)


@asynccontextmanager
async def loading(node: ScriptedNode) -> AsyncIterator[Gateway]:
    """Serve a model that is being loaded, until the test reports that it is there."""
    held = [replica("a", ReplicaStatus.LOADING, progress=PROGRESS)]
    async with nodes(node), gateway({"a": node.url}, held, timeouts=QUICK) as g:
        yield g


async def test_chat_callers_read_it_under_both_names() -> None:
    async with loading(ScriptedNode(streams(words(3)))) as g:
        client = AsyncOpenAI(base_url=f"{g.url}/v1", api_key="x", max_retries=0)
        thoughts, text = "", ""
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_headers=HEADERS,
        )
        async for chunk in stream:
            g.report("a", replica("a"))
            for choice in chunk.choices:
                told = choice.delta.model_dump()
                assert told.get("reasoning") == told.get("reasoning_content")
                thoughts += told.get("reasoning") or ""
                text += choice.delta.content or ""
        await client.close()

    assert (thoughts, text) == (SAID, ANSWER)


async def test_messages_have_a_block_of_thinking_before_the_answer() -> None:
    async with loading(ScriptedNode(streams(words(3)))) as g:
        client = AsyncAnthropic(base_url=g.url, api_key="x", max_retries=0)
        async with client.messages.stream(
            model=MODEL,
            max_tokens=2000,
            messages=[{"role": "user", "content": "hi"}],
            thinking={"type": "enabled", "budget_tokens": 1024},
            extra_headers=HEADERS,
        ) as stream:
            async for _ in stream:
                g.report("a", replica("a"))
            message = await stream.get_final_message()
        await client.close()

    thinking, answer = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking == SAID
    assert answer.type == "text"
    assert answer.text == ANSWER
    assert message.stop_reason == "end_turn"


async def test_responses_have_an_item_of_reasoning_and_are_kept_with_it() -> None:
    async with loading(ScriptedNode(streams(words(3)))) as g:
        client = AsyncOpenAI(base_url=f"{g.url}/v1", api_key="x", max_retries=0)
        async with client.responses.stream(
            model=MODEL, input="hi", extra_headers=HEADERS
        ) as stream:
            async for _ in stream:
                g.report("a", replica("a"))
            response = await stream.get_final_response()
        kept = await client.responses.retrieve(response.id)
        await client.close()

    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output_text == ANSWER
    assert SAID.strip() in response.output[0].model_dump_json()
    assert [item.type for item in kept.output] == ["reasoning", "message"]


async def test_ollamas_lines_have_it_as_thinking() -> None:
    async with (
        loading(ScriptedNode(streams(words(3)))) as g,
        calling(g.url, {"stream": True, "think": True}, path="/api/chat", **HEADERS) as caller,
    ):
        await caller.read_until(b"\r\n\r\n")
        shown = await caller.read_until(b"}\n")
        g.report("a", replica("a"))
        rest = await caller.read_until(b'"done":true') + await caller.read_until(b"}\n")

    lines = [json.loads(line) for line in (shown + rest).splitlines() if line.startswith(b"{")]
    assert "".join(line["message"].get("thinking") or "" for line in lines) == SAID
    assert "".join(line["message"]["content"] for line in lines) == ANSWER


async def test_what_was_shown_does_not_keep_a_request_from_another_node() -> None:
    """Ours: the caller has seen nothing of an answer, so another replica may still give one."""
    bad, good = ScriptedNode(cuts), ScriptedNode(streams(words(3)))
    held = [replica(name, ReplicaStatus.LOADING, progress=PROGRESS) for name in "ab"]
    async with (
        nodes(bad, good),
        gateway({"a": bad.url, "b": good.url}, held, timeouts=QUICK) as g,
        calling(
            g.url,
            {"stream": True, "max_tokens": 9, "thinking": {"type": "adaptive"}},
            path="/v1/messages",
            **HEADERS,
            **TO_A,
        ) as caller,
    ):
        begin = await caller.read_until(b"weights")
        for name in "ab":
            g.report(name, replica(name))
        rest = await caller.read_until(b"event: message_stop")

    assert bad.wires
    assert (begin + rest).count(b"event: message_start") == 1
    assert b"event: error" not in rest


@pytest.mark.parametrize(
    ("path", "fields", "first", "last"),
    [
        (
            "/v1/messages",
            {"max_tokens": 9, "thinking": {"type": "adaptive"}},
            b"event: message_start",
            b"event: message_stop",
        ),
        (
            "/v1/responses",
            {"input": "hi"},
            b"event: response.created",
            b"event: response.completed",
        ),
    ],
)
async def test_what_is_shown_only_after_a_refusal_belongs_to_the_same_answer(
    path: str, fields: dict[str, object], first: bytes, last: bytes
) -> None:
    answers = iter((refuses, streams(words(3))))
    node = ScriptedNode(lambda wire: next(answers)(wire))
    async with (
        nodes(node),
        gateway({"a": node.url}, timeouts=QUICK) as g,
        calling(g.url, {"stream": True, **fields}, path=path, **HEADERS) as caller,
    ):
        await g.refresh_asked("a")
        g.report("a", replica("a", ReplicaStatus.LOADING, progress=PROGRESS))
        begin = await caller.read_until(b"MiB\\n")
        g.report("a", replica("a"))
        whole = begin + await caller.read_until(last)

    assert whole.count(first) == 1


async def test_without_the_header_it_is_a_comment() -> None:
    async with (
        loading(ScriptedNode(streams(words(3)))) as g,
        calling(g.url, {"stream": True}) as caller,
    ):
        await caller.read_until(b"\r\n\r\n")
        shown = await caller.read_until(b"MiB\n")
        g.report("a", replica("a"))
        rest = await caller.read_until(DONE)

    assert shown.splitlines()[-1].startswith(b": loading")
    assert b"reasoning" not in rest


@pytest.mark.parametrize("value", ["text", ""])
async def test_another_way_to_show_it_is_refused(value: str) -> None:
    async with gateway({"a": "http://127.0.0.1:9"}) as g:
        answer = await ask(g.url, headers={"x-cortex-progress": value})

    assert (answer.status, answer.json["error"]["param"]) == (400, "x-cortex-progress")
