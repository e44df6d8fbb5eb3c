"""The simulated harness: its clock, its answers in OpenAI's shapes, its faults."""

import asyncio
import base64
import json
import math
import struct
from collections.abc import AsyncIterator

import jsonschema
import openai
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import (
    EngineError,
    InvalidRequestError,
    ModelLoadFailedError,
)
from cortex_core.harness import Engine, ModelSpec, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines.simulated import SimulatedHarness
from neuron.engines.simulation.instance import smallest_instance
from neuron.engines.simulation.text import (
    count_tokens,
    cut_at_stop,
    decode_tokens,
    encode_token,
    tokens_of,
)
from neuron.settings import Fault, SimulatedSettings
from tests.fakes.clock import FakeClock
from tests.neuron.conftest import RunningNeuron, Start

USER = [{"role": "user", "content": "hello"}]
WEATHER = {
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
        await running.load("a")
        await running.load("embed")
        yield running


@pytest.fixture
async def client(neuron: RunningNeuron) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=neuron.url + "/v1", api_key="none", max_retries=0
    ) as sdk:
        yield sdk


async def _engine(
    clock: FakeClock, tasks: asyncio.TaskGroup, settings: SimulatedSettings, **spec: object
) -> Engine:
    harness = SimulatedHarness(settings, clock, tasks)
    load = tasks.create_task(
        harness.load(ModelSpec(model=ModelId("m"), harness="simulated", **spec), _ignore)
    )
    await clock.advance(settings.load_s + 1)
    return load.result()


def _ignore(stage: str, done: int | None, total: int | None) -> None:
    pass


def _chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": USER, **fields}).encode()


async def _times(engine: Engine, clock: FakeClock, body: bytes) -> list[float]:
    """Return when each token of a stream came, in seconds from now."""
    begin = clock.now()
    answer = await engine.serve(Route.CHAT_COMPLETIONS, body, RequestId("r"))
    times = []
    async for chunk in answer.body:
        if b'"content":' in chunk and b'"content":""' not in chunk:
            times.append(clock.now() - begin)
    return times


# Time.


async def test_tokens_come_when_the_rates_say() -> None:
    """Ours: prefill, then one token per step; to be planned with."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=1, prefill_tok_per_s=4, decode_tok_per_s=10)
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        stream = tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=3)))
        await clock.advance(60)
        await engine.close(0)

    # "user: hello\n" has 12 bytes, which are 3 tokens.
    assert stream.result() == pytest.approx([0.85, 0.95, 1.05])


async def test_requests_share_steps_up_to_the_limit_and_queue_beyond() -> None:
    """Ours: continuous batching; the third request starts when a place is free."""
    clock = FakeClock()
    settings = SimulatedSettings(
        load_s=1, prefill_tok_per_s=1e9, decode_tok_per_s=1, max_in_flight=2
    )
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        streams = [
            tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=count)))
            for count in (2, 4, 1)
        ]
        await clock.advance(0.5)
        assert (engine.load().running, engine.load().waiting) == (2, 1)
        await clock.advance(60)
        assert (engine.load().running, engine.load().waiting) == (0, 0)
        await engine.close(0)

    assert [stream.result() for stream in streams] == [
        pytest.approx([1, 2]),
        pytest.approx([1, 2, 3, 4]),
        pytest.approx([3]),
    ]


async def test_load_takes_its_time_and_the_second_one_is_warm() -> None:
    """Ours: load_s plus the reading of weights; wake_s when host memory still has them."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=2, load_mb_per_s=100, wake_s=0.5, vram_mb={"m": 1000})
    spec = ModelSpec(model=ModelId("m"), harness="simulated")
    times = []
    async with asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(settings, clock, tasks)
        for _ in range(2):
            begin = clock.now()
            load = tasks.create_task(harness.load(spec, _ignore))
            while not load.done():
                await clock.advance(0.1)
            times.append(clock.now() - begin)
            await load.result().close(0)

    assert times == [pytest.approx(12, abs=0.11), pytest.approx(0.5, abs=0.11)]


async def test_close_waits_for_running_requests_and_no_longer_than_told() -> None:
    """Ours: the bound is on the clock."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=1, decode_tok_per_s=1)
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        short = tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=2)))
        await clock.advance(0.5)
        close = tasks.create_task(engine.close(10))
        await clock.advance(3)
        assert close.done()

        assert len(short.result()) == 2
        with pytest.raises(EngineError):
            await engine.serve(Route.CHAT_COMPLETIONS, _chat(), RequestId("r"))


@pytest.mark.parametrize("failures", [True, 2])
async def test_scripted_load_failures_happen_as_often_as_said(failures: bool | int) -> None:
    """Ours: `true` for ever, a number so many times."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=0, faults={"m": Fault(fail_to_load=failures)})
    outcomes = []
    async with asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(settings, clock, tasks)
        for _ in range(3):
            try:
                engine = await harness.load(
                    ModelSpec(model=ModelId("m"), harness="simulated"), _ignore
                )
            except ModelLoadFailedError:
                outcomes.append("failed")
            else:
                outcomes.append("loaded")
                await engine.close(0)

    assert outcomes == ["failed", "failed", "failed" if failures is True else "loaded"]


async def test_slow_model_takes_its_factor_of_everything() -> None:
    """Ours: `slow` stretches tokens too."""
    clock = FakeClock()
    settings = SimulatedSettings(
        load_s=1, prefill_tok_per_s=1e9, decode_tok_per_s=10, faults={"m": Fault(slow=5)}
    )
    async with asyncio.TaskGroup() as tasks:
        harness = SimulatedHarness(settings, clock, tasks)
        load = tasks.create_task(
            harness.load(ModelSpec(model=ModelId("m"), harness="simulated"), _ignore)
        )
        await clock.advance(4.9)
        assert not load.done()
        await clock.advance(0.2)
        engine = load.result()
        stream = tasks.create_task(_times(engine, clock, _chat(stream=True, max_tokens=2)))
        await clock.advance(9)
        await engine.close(0)

    assert stream.result() == pytest.approx([0.5, 1.0])


async def test_dead_engine_says_why_and_is_dead_for_good() -> None:
    """Ours: `failed()` wakes, later requests are refused."""
    clock = FakeClock()
    settings = SimulatedSettings(load_s=1, faults={"m": Fault(die_after_tokens=2)})
    async with asyncio.TaskGroup() as tasks:
        engine = await _engine(clock, tasks, settings)
        failed = tasks.create_task(engine.failed())
        moving = tasks.create_task(clock.advance(60))
        with pytest.raises(EngineError):
            await engine.serve(Route.CHAT_COMPLETIONS, _chat(), RequestId("r"))
        await moving

        assert failed.done()
        assert engine.failure is not None
        assert "after 2 tokens" in engine.failure


# Shapes, through the official SDK.


async def test_chat_answers_with_text_and_usage(client: openai.AsyncOpenAI) -> None:
    """OpenAI: chat completion object."""
    one = await client.chat.completions.create(model="a", messages=USER)
    two = await client.chat.completions.create(model="a", messages=USER, seed=7)

    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.choices[0].finish_reason == "stop"
    assert one.usage is not None
    assert one.usage.prompt_tokens == 3
    assert one.usage.completion_tokens == len(one.choices[0].message.content.split())
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens


async def test_stream_says_the_same_as_the_whole_answer(client: openai.AsyncOpenAI) -> None:
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


async def test_choices_differ_and_interleave(client: openai.AsyncOpenAI) -> None:
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
async def test_length_is_limited(client: openai.AsyncOpenAI, name: str) -> None:
    """OpenAI: both names, finish reason `length`."""
    answer = await client.chat.completions.create(model="a", messages=USER, **{name: 3})

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("as_list", [True, False])
async def test_stop_string_ends_the_answer_before_it(
    client: openai.AsyncOpenAI, as_list: bool
) -> None:
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
    client: openai.AsyncOpenAI, is_named: bool, is_stream: bool
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


async def test_tools_may_be_left_uncalled(client: openai.AsyncOpenAI) -> None:
    """OpenAI: `auto` and `none` answer with text here."""
    for choice in ("auto", "none"):
        answer = await client.chat.completions.create(
            model="a", messages=USER, tools=[WEATHER], tool_choice=choice
        )
        assert answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None


async def test_response_format_is_kept(client: openai.AsyncOpenAI) -> None:
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


async def test_completions_number_their_choices_by_prompt(client: openai.AsyncOpenAI) -> None:
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


async def test_completion_stream_ends_with_its_reason(client: openai.AsyncOpenAI) -> None:
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
    client: openai.AsyncOpenAI, neuron: RunningNeuron
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


# Pure parts.


@given(st.text())
def test_tokens_are_the_text(text: str) -> None:
    """Ours: token ids lose nothing, and counting counts them."""
    if not _is_utf8(text):
        return
    tokens = tokens_of(text)

    assert "".join(tokens) == text
    assert all(1 <= len(token.encode()) <= 4 for token in tokens)
    assert decode_tokens([encode_token(token) for token in tokens]) == text
    assert count_tokens(text) == len(tokens)


@given(st.integers())
def test_number_that_is_no_token_is_refused(number: int) -> None:
    """Ours: any integer is a token of ours, or a 400."""
    try:
        text = decode_tokens([number])
    except InvalidRequestError as error:
        assert error.param == "tokens"
    else:
        assert encode_token(text) == number


@given(st.lists(st.text("ab ", min_size=1, max_size=4), max_size=8), st.text("ab ", max_size=3))
def test_text_before_the_stop_string_is_kept_whole(tokens: list[str], stop: str) -> None:
    """Ours: exactly what comes before the first stop string."""
    kept, is_stopped = cut_at_stop(tokens, [stop])

    text = "".join(tokens)
    assert is_stopped == (bool(stop) and stop in text)
    assert "".join(kept) == (text.split(stop)[0] if is_stopped else text)


SCALARS = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda n: {"type": "string", "minLength": n}, st.integers(0, 5)),
    st.builds(lambda n: {"type": "integer", "minimum": n}, st.integers(-9, 9)),
    st.builds(lambda n: {"type": "integer", "maximum": n}, st.integers(-9, 9)),
    st.builds(lambda n: {"type": "integer", "exclusiveMinimum": n}, st.integers(-9, 9)),
    st.builds(lambda n: {"type": "number", "exclusiveMaximum": n}, st.integers(-9, 9)),
    st.builds(
        lambda n, m: {"type": "integer", "multipleOf": n, "minimum": m},
        st.integers(1, 9),
        st.integers(-20, 20),
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": [1]}, {"enum": ["x", 2]}]),
    st.just({"type": ["null", "string"]}),
    st.just(True),
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda items, n: {"type": "array", "items": items, "minItems": n},
            inner,
            st.integers(0, 3),
        ),
        st.builds(
            lambda properties, count: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[:count],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.integers(0, 3),
        ),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one: {"$defs": {"x": one}, "$ref": "#/$defs/x"}, SCALARS),
    ),
    max_leaves=8,
)


@given(SCHEMAS)
def test_made_up_value_is_valid_under_its_schema(schema: object) -> None:
    """JSON Schema 2020-12, for the keywords that tools use."""
    if "$ref" in str(schema) and not (isinstance(schema, dict) and "$ref" in schema):
        # A nested reference would have to point at its own root.
        return

    value = smallest_instance(schema)

    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        {"type": "nope"},
        {"$ref": "#/nope"},
        {"$ref": "#"},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "minItems": 10**9},
    ],
)
def test_schema_without_a_reasonable_value_is_refused(schema: object) -> None:
    """Ours: bounded, whatever a caller sends."""
    with pytest.raises(InvalidRequestError):
        smallest_instance(schema)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
