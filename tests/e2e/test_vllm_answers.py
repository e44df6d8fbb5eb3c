"""What the real engine answers through a neuron: every route, with the official SDK's eyes."""

import base64
import json
import struct
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.openmetrics import parser as openmetrics

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess, wait_for

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_answer_carries_the_requested_id_and_counts_its_tokens(neuron: NeuronProcess) -> None:
    """Ours: the reply's `model` is the id that was asked for; vLLM's usage with details."""
    answer = neuron.ask(CHAT_PATH, model=CHAT, messages=HELLO, max_tokens=4, ignore_eos=True)

    assert answer["model"] == CHAT
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] > 0
    assert "cached_tokens" in answer["usage"]["prompt_tokens_details"]
    assert answer["choices"][0]["finish_reason"] == "length"


def test_stream_ends_with_usage_and_done(neuron: NeuronProcess) -> None:
    """OpenAI API reference: with `include_usage` the last chunk has the usage, then `[DONE]`."""
    body = {
        "model": CHAT,
        "messages": HELLO,
        "max_tokens": 5,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = neuron.post(CHAT_PATH, body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event for event in answer.text.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    first = json.loads(events[0].removeprefix("data: "))
    assert first["choices"][0]["delta"]["role"] == "assistant"


def test_official_sdk_streams_a_chat(neuron: NeuronProcess) -> None:
    """Ours: the OpenAI SDK needs nothing but the base URL."""
    with openai.OpenAI(base_url=f"{neuron.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=16,
            temperature=0,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    whole = neuron.ask(CHAT_PATH, model=CHAT, messages=HELLO, max_tokens=16, temperature=0)
    assert text
    assert text == whole["choices"][0]["message"]["content"]


def test_built_in_model_knows_what_it_was_taught(neuron: NeuronProcess) -> None:
    """Ours: `cortex/tiny` answers the questions of the first steps."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = neuron.ask(CHAT_PATH, model=CHAT, messages=question, temperature=0, max_tokens=32)

    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_completion_of_several_prompts_and_choices(neuron: NeuronProcess) -> None:
    """OpenAI API reference: choices are numbered prompt by prompt."""
    answer = neuron.ask(
        "/v1/completions", model=CHAT, prompt=["one", "two"], n=2, max_tokens=3, temperature=1
    )

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["object"] == "text_completion"


def test_two_choices_differ_in_index(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `n` choices."""
    answer = neuron.ask(CHAT_PATH, model=CHAT, messages=HELLO, n=2, max_tokens=3, temperature=1)

    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_log_probabilities_of_each_token(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `top_logprobs` alternatives per token.

    Also a known trap: vLLM compiles C++ for this on the CPU unless it is told not to.
    """
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=HELLO,
        max_tokens=3,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=2,
    )

    tokens = answer["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    assert all(len(token["top_logprobs"]) >= 2 and token["logprob"] <= 0 for token in tokens)


def test_stop_string_ends_the_answer(neuron: NeuronProcess) -> None:
    """vLLM: the matched string is `stop_reason`, and not part of the text."""
    body = {"model": CHAT, "prompt": "a", "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    text: str = neuron.ask("/v1/completions", **body)["choices"][0]["text"]
    stop = text[6:9]

    answer = neuron.ask("/v1/completions", **body, stop=[stop])

    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == stop
    assert choice["text"] == text[: text.index(stop)]


def test_schema_forces_the_answer(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `response_format` of type `json_schema`."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "boolean"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=HELLO,
        max_tokens=64,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": schema, "strict": True},
        },
    )

    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["answer"], bool)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_tool_call_is_forced(neuron: NeuronProcess, choice: object) -> None:
    """OpenAI API reference: `tool_choice` required, or one named function."""
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice=choice,
        max_tokens=96,
        temperature=0,
    )

    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)


def test_tool_call_is_read_out_of_the_text(neuron: NeuronProcess) -> None:
    """Ours: with `tool_choice` auto, the parser of the model's family finds the call."""
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=question,
        tools=[WEATHER],
        tool_choice="auto",
        temperature=0,
        max_tokens=64,
    )

    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert "<tool_call>" not in (answer["choices"][0]["message"]["content"] or "")


@pytest.mark.parametrize("is_stream", [False, True])
def test_thinking_is_kept_apart_from_the_answer(neuron: NeuronProcess, is_stream: bool) -> None:
    """vLLM: thoughts are in `reasoning`; both transports agree."""
    body: dict[str, Any] = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "chat_template_kwargs": {"enable_thinking": True},
        "temperature": 0,
        "max_tokens": 128,
    }
    if is_stream:
        events = neuron.post(CHAT_PATH, {**body, "stream": True}).text.split("\n\n")
        chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        reasoning = "".join(delta.get("reasoning") or "" for delta in deltas)
        content = "".join(delta.get("content") or "" for delta in deltas)
    else:
        message = neuron.ask(CHAT_PATH, **body)["choices"][0]["message"]
        reasoning, content = message["reasoning"], message["content"]

    assert reasoning.strip()
    assert content.strip() == "The capital of France is Paris."


def test_embedding_is_the_same_as_numbers_and_as_bytes(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `base64` is little-endian float32."""
    numbers = neuron.ask("/v1/embeddings", model=EMBED, input=["hello", "bye"])
    packed = neuron.ask("/v1/embeddings", model=EMBED, input="hello", encoding_format="base64")

    assert numbers["model"] == EMBED
    assert [entry["index"] for entry in numbers["data"]] == [0, 1]
    vector = numbers["data"][0]["embedding"]
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(vector)}f", raw)) == pytest.approx(vector, abs=1e-6)


def test_sentences_are_scored_and_ranked(neuron: NeuronProcess) -> None:
    """vLLM: an embedding model scores pairs by the angle between them; like is like itself."""
    score = neuron.ask("/v1/score", model=EMBED, text_1="hello", text_2=["hello", "models"])
    ranks = neuron.ask("/v1/rerank", model=EMBED, query="hello", documents=["models", "hello"])

    assert score["data"][0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert ranks["results"][0]["index"] == 1


def test_tokens_go_there_and_back(neuron: NeuronProcess) -> None:
    """vLLM: `/detokenize` undoes `/tokenize`."""
    tokens = neuron.ask("/tokenize", model=CHAT, prompt="hello there", add_special_tokens=False)
    text = neuron.ask("/detokenize", model=CHAT, tokens=tokens["tokens"])

    assert tokens["count"] == len(tokens["tokens"])
    assert text["prompt"] == "hello there"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": "text"}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"99999999": 1}, "stream": True}, "logit_bias"),
    ],
)
def test_bad_field_is_named(neuron: NeuronProcess, change: dict[str, object], param: str) -> None:
    """Ours: a 400 with `param`, also for a stream that has not begun; no internals."""
    answer = neuron.post(CHAT_PATH, {"model": CHAT, "messages": HELLO, **change})

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "pydantic" not in error["message"]
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
def test_prompt_over_the_context_is_told_apart(neuron: NeuronProcess, path: str) -> None:
    """OpenAI: `context_length_exceeded`, which clients compact on."""
    text = "word " * 9000
    body = (
        {"prompt": text}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": text}]}
    )
    answer = neuron.post(path, {"model": CHAT, **body})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_route_that_the_model_lacks_is_refused(neuron: NeuronProcess) -> None:
    """Ours: an embedding model has no chat, and says what it has."""
    answer = neuron.post(CHAT_PATH, {"model": EMBED, "messages": HELLO})

    assert answer.status_code == 400
    assert "/v1/embeddings" in answer.json()["error"]["message"]


def test_both_models_say_what_they_can(neuron: NeuronProcess) -> None:
    """Ours: capabilities and limits come from the engines."""
    models = {entry["id"]: entry for entry in neuron.http.get("/models").json()}

    chat, embed = models[CHAT]["capabilities"], models[EMBED]["capabilities"]
    assert (chat["chat"], chat["tools"], chat["reasoning"], chat["embeddings"]) == (
        True,
        True,
        True,
        False,
    )
    assert (embed["chat"], embed["embeddings"]) == (False, True)
    assert models[CHAT]["limit"]["context"] == 4096


def test_series_of_both_engines_are_there(neuron: NeuronProcess) -> None:
    """Ours: the second engine does not wipe the first one's series, and families come once."""
    running = neuron.series("vllm:num_requests_running")
    text = neuron.http.get("/metrics").text

    assert any(f'model="{CHAT}"' in labels for labels in running)
    assert any(f'model="{EMBED}"' in labels for labels in running)
    assert text.count("# TYPE vllm:num_requests_running ") == 1


def test_series_of_engines_are_right_in_openmetrics(neuron: NeuronProcess) -> None:
    """OpenMetrics 1.0: its parser refuses what is not; the engine's series are among them."""
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    text = neuron.http.get("/metrics", headers=accept).text

    families = openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    names = [family.name for family in families]
    assert "vllm:num_requests_running" in names
    assert "vllm:generation_tokens" in names
    assert len(names) == len(set(names))


ENDLESS = {"model": CHAT, "messages": HELLO, "max_tokens": 3900, "ignore_eos": True}


@pytest.mark.parametrize("is_stream", [False, True])
def test_caller_that_leaves_frees_the_engine(neuron: NeuronProcess, is_stream: bool) -> None:
    """Ours: the slot is free within a second; told by the engine's own count."""
    body = {**ENDLESS, "stream": is_stream}

    def running() -> float:
        return sum(
            value
            for labels, value in neuron.series("vllm:num_requests_running").items()
            if f'model="{CHAT}"' in labels
        )

    if is_stream:
        with neuron.http.stream("POST", CHAT_PATH, json=body) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            wait_for(lambda: running() == 1)
    else:
        # The answer cannot be there in this time: the client gives up and closes.
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{neuron.url}{CHAT_PATH}", json=body, timeout=0.5)

    wait_for(lambda: running() == 0, timeout_s=1.0)
    assert neuron.model(CHAT)["in_flight"] == 0


def test_load_is_shown_while_it_runs(neuron: NeuronProcess) -> None:
    """Ours: `/health` has the engine's own figures."""
    with neuron.http.stream("POST", CHAT_PATH, json={**ENDLESS, "stream": True}) as answer:
        pieces = answer.iter_bytes()
        next(pieces)

        wait_for(lambda: neuron.model(CHAT)["tok_s_decode"] > 0)
        assert neuron.model(CHAT)["in_flight"] == 1
        assert neuron.model(CHAT)["kv_cache_usage"] > 0
