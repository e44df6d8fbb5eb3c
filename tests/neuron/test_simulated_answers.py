"""The simulated engine's answers in OpenAI's shapes, through the official SDK where it can."""

import base64
import json
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import openai
import pytest

from neuron.engines.simulation.text import count_tokens, encode_token
from tests.neuron.conftest import RunningNeuron, Start

Sdk = Any
"""`openai.AsyncOpenAI`, whose overloads want literals where a test has data."""

USER = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 2},
                "note": {"type": "string"},
            },
            "required": ["city", "unit", "days"],
        },
    },
}


@pytest.fixture
async def neuron(start: Start) -> AsyncIterator[RunningNeuron]:
    async with start(simulated={"context": 256}) as running:
        await running.load("a", vram_mb=100)
        await running.load("embed", vram_mb=100)
        yield running


@pytest.fixture
async def client(neuron: RunningNeuron) -> AsyncIterator[Sdk]:
    async with openai.AsyncOpenAI(
        base_url=neuron.url + "/v1", api_key="none", max_retries=0
    ) as sdk:
        yield sdk


async def test_chat_answers_with_text_and_usage(client: Sdk) -> None:
    """OpenAI: chat completion object."""
    one = await client.chat.completions.create(model="a", messages=USER)
    two = await client.chat.completions.create(model="a", messages=USER, seed=7)

    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.choices[0].finish_reason == "stop"
    assert one.usage is not None
    assert one.usage.prompt_tokens == 3
    assert one.usage.completion_tokens == len(one.choices[0].message.content.split())
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens


async def test_stream_says_the_same_as_the_whole_answer(client: Sdk) -> None:
    """OpenAI: role first, finish reason last, usage when asked for."""
    whole = await client.chat.completions.create(model="a", messages=USER)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="a", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    ]

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_comes_only_when_asked_for(neuron: RunningNeuron) -> None:
    """OpenAI: no usage key unasked; vLLM: `continuous_usage_stats` in every chunk."""
    lines = []
    for options in (None, {"include_usage": True, "continuous_usage_stats": True}):
        body = {"model": "a", "messages": USER, "stream": True, "max_tokens": 3}
        if options:
            body["stream_options"] = options
        async with neuron.session.post(neuron.url + "/v1/chat/completions", json=body) as answer:
            text = await answer.text()
        lines.append([json.loads(line[6:]) for line in text.split("\n\n")[:-2]])

    assert all("usage" not in chunk for chunk in lines[0])
    assert [chunk["usage"]["completion_tokens"] for chunk in lines[1]] == [1, 1, 2, 3, 3, 3]


async def test_an_answer_goes_on_to_the_limit_when_the_end_is_ignored(client: Sdk) -> None:
    """vLLM: `ignore_eos`."""
    short = await client.chat.completions.create(model="a", messages=USER, max_tokens=150)
    long = await client.chat.completions.create(
        model="a", messages=USER, max_tokens=150, extra_body={"ignore_eos": True}
    )

    assert short.choices[0].finish_reason == "stop"
    assert long.choices[0].finish_reason == "length"
    assert long.usage.completion_tokens == 150


async def test_choices_differ_and_interleave(client: Sdk) -> None:
    """OpenAI: `n`."""
    whole = await client.chat.completions.create(model="a", messages=USER, n=3)
    texts = ["", "", ""]
    async for chunk in await client.chat.completions.create(
        model="a", messages=USER, n=3, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_length_is_limited(client: Sdk, name: str) -> None:
    """OpenAI: both names, finish reason `length`."""
    answer = await client.chat.completions.create(model="a", messages=USER, **{name: 3})

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("as_list", [True, False])
async def test_stop_string_ends_the_answer_before_it(client: Sdk, as_list: bool) -> None:
    """OpenAI: a string or a list; the stop string itself is left out."""
    whole = await client.chat.completions.create(model="a", messages=USER)
    text = whole.choices[0].message.content or ""
    stop = text.split()[4] + " "

    cut = await client.chat.completions.create(
        model="a", messages=USER, stop=[stop, "never"] if as_list else stop
    )

    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_forced_tool_is_called_with_valid_arguments(
    client: Sdk, is_named: bool, is_stream: bool
) -> None:
    """OpenAI: `required` ends with tool_calls, a named choice with stop."""
    choice = {"type": "function", "function": {"name": "weather"}} if is_named else "required"
    answer = await client.chat.completions.create(
        model="a", messages=USER, tools=[WEATHER], tool_choice=choice, stream=is_stream
    )
    if is_stream:
        deltas = [chunk.choices[0] async for chunk in answer]
        reason = deltas[-1].finish_reason
        calls = [part for delta in deltas for part in delta.delta.tool_calls or ()]
        assert [call.id for call in calls if call.id] == [calls[0].id]
        name = calls[0].function.name
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        (call,) = answer.choices[0].message.tool_calls
        reason = answer.choices[0].finish_reason
        name, arguments = call.function.name, call.function.arguments
        assert answer.choices[0].message.content is None

    assert name == "weather"
    assert reason == ("stop" if is_named else "tool_calls")
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])


async def test_tools_may_be_left_uncalled(client: Sdk) -> None:
    """OpenAI: `auto` and `none` answer with text here."""
    for choice in ("auto", "none"):
        answer = await client.chat.completions.create(
            model="a", messages=USER, tools=[WEATHER], tool_choice=choice
        )
        assert answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None


async def test_response_format_is_kept(client: Sdk) -> None:
    """OpenAI: json_object and json_schema give valid JSON."""
    schema = WEATHER["function"]["parameters"]
    plain = await client.chat.completions.create(
        model="a", messages=USER, response_format={"type": "json_object"}
    )
    shaped = await client.chat.completions.create(
        model="a",
        messages=USER,
        response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": schema}},
    )

    assert json.loads(plain.choices[0].message.content or "") == {}
    jsonschema.validate(json.loads(shaped.choices[0].message.content or ""), schema)


async def test_completions_number_their_choices_by_prompt(client: Sdk) -> None:
    """OpenAI: choice index is prompt x n + i; 16 tokens unless said otherwise; echo."""
    answer = await client.completions.create(
        model="a", prompt=["one", "two"], n=2, echo=True, max_tokens=4
    )
    short = await client.completions.create(model="a", prompt="one")
    ids = await client.completions.create(
        model="a", prompt=[encode_token("one")], max_tokens=4, echo=True
    )

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in answer.choices] == ["one", "one", "two", "two"]
    assert short.usage is not None
    assert short.usage.completion_tokens <= 16
    assert ids.choices[0].text == answer.choices[0].text


async def test_completion_stream_ends_with_its_reason(client: Sdk) -> None:
    """OpenAI: text pieces, then a finish reason."""
    whole = await client.completions.create(model="a", prompt="one", max_tokens=5)
    chunks = [
        chunk
        async for chunk in await client.completions.create(
            model="a", prompt="one", max_tokens=5, stream=True
        )
    ]

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_embeddings_are_unit_vectors_in_either_encoding(
    client: Sdk, neuron: RunningNeuron
) -> None:
    """OpenAI: float and base64 of little-endian float32, in input order."""
    floats = await client.embeddings.create(
        model="embed", input=["a", "b", "a"], encoding_format="float"
    )
    _, raw, _ = await neuron.post(
        "/v1/embeddings",
        {"model": "embed", "input": "b", "encoding_format": "base64", "dimensions": 64},
    )

    one, two, three = (entry.embedding for entry in floats.data)
    assert one == three != two
    assert math.hypot(*one) == pytest.approx(1, abs=1e-6)
    decoded = struct.unpack("<64f", base64.b64decode(raw["data"][0]["embedding"]))
    assert list(decoded) == pytest.approx(two)
    assert floats.usage.prompt_tokens == 3


async def test_tokens_turn_back_into_text(neuron: RunningNeuron) -> None:
    """vLLM: `/tokenize` and `/detokenize`."""
    _, tokens, _ = await neuron.post(
        "/tokenize", {"model": "a", "prompt": "Grüße, 世界!", "return_token_strs": True}
    )
    _, text, _ = await neuron.post("/detokenize", {"model": "a", "tokens": tokens["tokens"]})
    _, chat, _ = await neuron.post("/tokenize", {"model": "a", "messages": USER})

    assert text == {"prompt": "Grüße, 世界!"}
    assert tokens["count"] == len(tokens["tokens"])
    assert "".join(tokens["token_strs"]) == "Grüße, 世界!"
    assert (tokens["max_model_len"], chat["count"]) == (256, 3)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "nope"}]}, "messages[0].role"),
        ("chat/completions", {"messages": USER, "n": 0}, "n"),
        ("chat/completions", {"messages": USER, "max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"messages": USER, "temperature": "hot"}, "temperature"),
        ("chat/completions", {"messages": USER, "temperature": 3}, "temperature"),
        ("chat/completions", {"messages": USER, "logprobs": True}, "logprobs"),
        ("chat/completions", {"messages": USER, "tool_choice": "required"}, "tools"),
        (
            "chat/completions",
            {
                "messages": USER,
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "nope"}},
            },
            "tool_choice",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ("completions", {}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["x", 5]}, "prompt"),
    ],
)
async def test_invalid_field_is_named(
    neuron: RunningNeuron, path: str, body: dict[str, object], param: str
) -> None:
    """OpenAI: 400 invalid_request_error with `param`."""
    status, answer, _ = await neuron.post(f"/v1/{path}", {"model": "a", **body})

    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param


@pytest.mark.parametrize("text", ["x" * 2000, "ü" * 1000])
async def test_prompt_over_the_context_is_refused_with_both_numbers(
    neuron: RunningNeuron, text: str
) -> None:
    """Ours: context_length_exceeded; clients compact their history on it."""
    status, answer, _ = await neuron.post(
        "/v1/chat/completions",
        {"model": "a", "messages": [{"role": "user", "content": text}]},
    )

    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert str(count_tokens(f"user: {text}\n")) in answer["error"]["message"]


async def test_engine_options_are_honoured(start: Start) -> None:
    """Ours: `max_model_len` and `runner` have vLLM's meaning."""
    async with start() as neuron:
        await neuron.load("a", engine={"max_model_len": 7, "runner": "pooling"})
        report = await neuron.model("a")

    assert report is not None
    assert report["limit"]["context"] == 7
    assert report["capabilities"]["embeddings"] is True
