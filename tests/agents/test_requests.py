"""What agents were seen to ask is answered in their dialect, without any agent being there."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
import anthropic
import openai.types.responses
import pydantic
import pytest

from tests.agents import recorded, scripted_model
from tests.agents.recorded import Asked
from tests.fakes.gateway import gateway
from tests.fakes.upstream import DONE, ScriptedNode

AGENTS = recorded.agents()

MESSAGES_EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
    anthropic.types.RawMessageStreamEvent
)
RESPONSES_EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
    openai.types.responses.ResponseStreamEvent
)
CHUNK: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(openai.types.chat.ChatCompletionChunk)
WHOLE: Mapping[str, pydantic.TypeAdapter[Any]] = {
    "/v1/messages": pydantic.TypeAdapter(anthropic.types.Message),
    "/v1/responses": pydantic.TypeAdapter(openai.types.responses.Response),
    "/v1/chat/completions": pydantic.TypeAdapter(openai.types.chat.ChatCompletion),
}


def test_every_kind_of_agent_was_recorded() -> None:
    """Ours: a lost file must not look like success."""
    assert {agent.partition("-")[0] for agent in AGENTS} == {
        "aider",
        "claude",
        "codex",
        "langchain",
        "llm",
        "opencode",
    }


@pytest.mark.parametrize("agent", AGENTS)
async def test_recorded_requests_are_answered_in_their_dialect(agent: str) -> None:
    """Issue: the shape of their requests is kept, so that the suite runs without the agents."""
    asked = recorded.load(agent)
    async with (
        ScriptedNode(scripted_model.play) as node,
        gateway({"a": node.url}) as g,
        aiohttp.ClientSession() as session,
    ):
        for one in asked:
            assert one.body is not None, "the recording has a request that this test cannot judge"
            url = g.url + one.target
            async with session.post(url, json=one.body, headers=_headers(one)) as answer:
                body = await answer.read()
                assert answer.status == 200, body
            check_answer(one, body)

    bodies = [json.loads(wire.body) for wire in node.wires]
    assert len(bodies) == len(asked)
    for one, body in zip(asked, bodies, strict=True):
        check_put_to_engine(one, body)


def _headers(asked: Asked) -> dict[str, str]:
    # The body is another one than was counted and packed.
    left_out = ("content-length", "content-encoding", "transfer-encoding", "accept-encoding")
    return {name: value for name, value in asked.headers.items() if name not in left_out}


def check_answer(asked: Asked, body: bytes) -> None:
    """Hold an answer against the official SDK's types."""
    path = asked.target.partition("?")[0]
    if not asked.body.get("stream"):
        WHOLE[path].validate_json(body)
        return
    events = list(_events(body))
    if path == "/v1/messages":
        kinds = [MESSAGES_EVENT.validate_python(event).type for event in events if _is_told(event)]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    elif path == "/v1/responses":
        kinds = [RESPONSES_EVENT.validate_python(event).type for event in events]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    else:
        assert body.endswith(DONE)
        for event in events:
            CHUNK.validate_python(event)


def _events(body: bytes) -> Iterator[Any]:
    for block in body.decode().split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def _is_told(event: Mapping[str, Any]) -> bool:
    # The SDK has no type for pings, which it reads over.
    return bool(event["type"] != "ping")


def check_put_to_engine(asked: Asked, body: Mapping[str, Any]) -> None:
    """Check what every chat template needs, and that no tool and no text was lost."""
    roles = [message["role"] for message in body["messages"]]
    calls = [c["id"] for m in body["messages"] for c in m.get("tool_calls") or ()]
    results = [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"]
    assert roles.count("system") <= 1
    assert "system" not in roles[1:]
    assert results == calls
    names = [tool["function"]["name"] for tool in body.get("tools") or ()]
    assert len(names) == len(set(names))
    assert bool(names) == bool(asked.body.get("tools"))
    # Filler is the same everywhere, so that what was said is counted rather than looked for.
    assert _text_length(body["messages"]) >= _text_length(_said(asked.body))


def _said(body: Mapping[str, Any]) -> list[Any]:
    """Return whatever of a request is told to the model, but for what it said itself."""
    told = [body.get("instructions"), body.get("system"), *(body.get("messages") or ())]
    told += body.get("input") or ()
    return [t for t in told if not isinstance(t, dict) or t.get("role") in ("user", "system")]


def _text_length(value: Any) -> int:
    match value:
        case {"text": str(text)} if not text.startswith("x-anthropic-billing-header"):
            return len(text)
        case {"content": content}:
            return _text_length(content)
        case list():
            return sum(_text_length(member) for member in value)
        case str():
            return len(value)
        case _:
            return 0
