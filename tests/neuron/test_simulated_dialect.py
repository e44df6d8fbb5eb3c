"""What the simulated engine does of tools, reasoning, stops and counts, so that it can stand in."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import encode_json
from neuron.engines.simulation.plan import plan_chat
from neuron.engines.simulation.planned import Kind
from neuron.engines.simulation.requests import CHAT_DECODER
from tests.neuron.conftest import RunningNeuron, Start, events_of

CHAT_PATH = "/v1/chat/completions"
COUNT_PATH = "/v1/chat/completions/count_tokens"


def tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 3}},
        "required": ["city"],
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("get_weather"), tool("get_time")]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
async def neuron(start: Start) -> AsyncIterator[RunningNeuron]:
    async with start(simulated={"context": 512}) as running:
        await running.load("a", vram_mb=100)
        await running.load("embed", vram_mb=100)
        yield running


async def ask(neuron: RunningNeuron, path: str = CHAT_PATH, **body: Any) -> Any:
    status, answer, _ = await neuron.post(path, {"model": "a", **body})
    assert status == 200, answer
    return answer


async def chunks_of(neuron: RunningNeuron, **body: Any) -> list[Any]:
    asked = {"model": "a", "stream": True, "stream_options": {"include_usage": True}, **body}
    async with neuron.session.post(neuron.url + CHAT_PATH, json=asked) as answer:
        events = [event.data async for event in events_of(answer)]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def joined(chunks: list[Any]) -> dict[str, Any]:
    """Return a stream as the message that the same answer has whole."""
    message: dict[str, Any] = {"content": None, "reasoning": None, "calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning"):
                if delta.get(name):
                    message[name] = (message[name] or "") + delta[name]
            for part in delta.get("tool_calls", ()):
                if "id" in part:
                    assert part["index"] == len(message["calls"])
                    message["calls"].append([part["function"]["name"], ""])
                message["calls"][part["index"]][1] += part["function"]["arguments"]
    return message


@pytest.mark.parametrize(
    ("text", "extra", "names"),
    [
        ("hello", {}, []),
        ("get_weather for Paris", {}, ["get_weather"]),
        ("get_time and get_weather", {"tool_choice": "auto"}, ["get_weather", "get_time"]),
        ("get_time and get_weather", {"parallel_tool_calls": False}, ["get_weather"]),
        ("get_weather", {"tool_choice": "none"}, []),
        ("forget_weather", {}, []),
        ("hello", {"tool_choice": "required"}, ["get_weather"]),
    ],
)
async def test_tools_that_the_user_names_are_called(
    neuron: RunningNeuron, text: str, extra: dict[str, Any], names: list[str]
) -> None:
    """Ours: with `auto`, the last message decides; whole and stream agree."""
    body = {"messages": [user(text)], "tools": TOOLS, **extra}

    choice = (await ask(neuron, **body))["choices"][0]
    streamed = joined(await chunks_of(neuron, **body))

    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == names
    assert all(len(json.loads(call["function"]["arguments"])["city"]) == 3 for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    assert choice["finish_reason"] == ("tool_calls" if names else "stop")
    assert (choice["message"]["content"] is None) == bool(names)
    assert streamed["calls"] == [
        [call["function"]["name"], call["function"]["arguments"]] for call in calls
    ]
    assert streamed["content"] == choice["message"]["content"]


async def test_result_of_a_tool_is_answered_with_text(neuron: RunningNeuron) -> None:
    """Ours: a loop of calls ends by itself."""
    called = {
        "id": "call-1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": "{}"},
    }
    messages = [
        user("get_weather"),
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call-1", "content": "get_weather says sun"},
    ]

    choice = (await ask(neuron, messages=messages, tools=TOOLS))["choices"][0]

    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"]


@pytest.mark.parametrize(
    ("extra", "is_thinking"),
    [
        ({}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
            False,
        ),
        ({"reasoning_effort": "high", "thinking_token_budget": 0}, False),
    ],
)
async def test_reasoning_comes_apart_from_the_text(
    neuron: RunningNeuron, extra: dict[str, Any], is_thinking: bool
) -> None:
    """vLLM: in `reasoning`, and counted in the usage's details."""
    body = {"messages": [user("hello")], **extra}

    whole = await ask(neuron, **body)
    chunks = await chunks_of(neuron, **body)

    message = whole["choices"][0]["message"]
    plain = await ask(neuron, messages=[user("hello")])
    assert message["content"] == plain["choices"][0]["message"]["content"]
    assert (message.get("reasoning") is not None) == is_thinking
    thought = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert thought == len((message.get("reasoning") or "").split())
    streamed = joined(chunks)
    assert streamed["reasoning"] == message.get("reasoning")
    assert streamed["content"] == message["content"]
    assert chunks[-1]["usage"] == whole["usage"]


async def test_reasoning_ends_at_its_budget(neuron: RunningNeuron) -> None:
    """vLLM: `thinking_token_budget`."""
    answer = await ask(
        neuron, messages=[user("hello")], reasoning_effort="high", thinking_token_budget=3
    )

    assert len(answer["choices"][0]["message"]["reasoning"].split()) == 3
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_stop_string_is_reported(neuron: RunningNeuron, is_stream: bool) -> None:
    """vLLM: `stop_reason` is the string that matched, null otherwise."""
    messages = [user("hello")]
    text = (await ask(neuron, messages=messages))["choices"][0]["message"]["content"]
    word = text.split()[2]

    async def ended(**extra: Any) -> Any:
        body = {"messages": messages, **extra}
        if is_stream:
            return (await chunks_of(neuron, **body))[-2]["choices"][0]
        return (await ask(neuron, **body))["choices"][0]

    stopped, natural = await ended(stop=["never", word]), await ended()

    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", word)
    assert (natural["finish_reason"], natural["stop_reason"]) == ("stop", None)


async def test_first_chunk_tells_the_prompt(neuron: RunningNeuron) -> None:
    """vLLM: with `continuous_usage_stats` every chunk has the usage so far."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await chunks_of(neuron, messages=[user("hello")], stream_options=options)

    prompts = {chunk["usage"]["prompt_tokens"] for chunk in chunks}
    assert prompts == {chunks[-1]["usage"]["prompt_tokens"]}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user("hello")]},
        {"messages": [{"role": "system", "content": "be brief"}, user("hello")]},
        {"messages": [user("hello")], "tools": TOOLS},
        {"messages": [user("hello")], "tools": TOOLS, "tool_choice": "none"},
        {"messages": [user("hello")], "reasoning_effort": "high"},
    ],
)
async def test_count_is_what_the_answer_reports(
    neuron: RunningNeuron, body: dict[str, Any]
) -> None:
    """Ours: the same number, whatever is in the conversation."""
    counted = await ask(neuron, COUNT_PATH, stream=True, **body)
    answered = await ask(neuron, **body)

    assert counted == {
        "object": "chat.completion.token_count",
        "model": "a",
        "prompt_tokens": answered["usage"]["prompt_tokens"],
    }


async def test_tools_are_part_of_the_prompt(neuron: RunningNeuron) -> None:
    """Ours: as with a real template, unless they must not be used."""
    counts = [
        (await ask(neuron, COUNT_PATH, messages=[user("hello")], **extra))["prompt_tokens"]
        for extra in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"})
    ]

    assert counts[1] > counts[0]
    assert counts[2] == counts[0]


async def test_prompt_over_the_context_is_counted(neuron: RunningNeuron) -> None:
    """Ours: clients count to learn how much they are over."""
    answer = await ask(neuron, COUNT_PATH, messages=[user("word" * 600)])

    assert answer["prompt_tokens"] > 600


async def test_count_takes_no_place_in_the_batch(start: Start) -> None:
    """Ours: it is answered while the only place is taken by a request that never ends."""
    async with start(simulated={"max_in_flight": 1, "faults": {"a": {"hang": True}}}) as running:
        await running.load("a", vram_mb=100)
        body = {"model": "a", "messages": [user("hello")]}
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(running.post(CHAT_PATH, body))
            await running.until(lambda health: any(m["in_flight"] for m in health["models"]))

            counted = await ask(running, COUNT_PATH, messages=body["messages"])

            waiting.cancel()
        assert counted["prompt_tokens"] == 3


async def test_count_is_not_for_an_embedding_model(neuron: RunningNeuron) -> None:
    """Ours: no chat, no count."""
    status, answer, _ = await neuron.post(
        COUNT_PATH, {"model": "embed", "messages": [user("hello")]}
    )

    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@given(
    limit=st.integers(1, 90),
    thinks=st.booleans(),
    text=st.sampled_from(["hello", "get_weather", "get_time get_weather"]),
)
def test_limit_cuts_whatever_comes_last(limit: int, thinks: bool, text: str) -> None:
    """Ours: a shorter limit gives the beginning of the same answer, and says so."""
    body: dict[str, Any] = {"model": "a", "messages": [user(text)], "tools": TOOLS}
    body["reasoning_effort"] = "low" if thinks else "none"
    whole = plan_chat(CHAT_DECODER.decode(encode_json(body)), 4096).choices[0]
    cut = plan_chat(CHAT_DECODER.decode(encode_json({**body, "max_tokens": limit})), 4096).choices[
        0
    ]

    tokens = [token for piece in whole.pieces for token in piece.tokens]
    assert [token for piece in cut.pieces for token in piece.tokens] == tokens[:limit]
    assert (cut.finish_reason == "length") == (limit < len(tokens))
    assert (whole.pieces[0].kind is Kind.REASONING) == thinks
