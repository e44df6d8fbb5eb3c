"""What of OpenAI's API the real engine does, and how it refuses the rest."""

import base64
import json
import struct
from typing import Any

import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
COUNT_PATH = f"{CHAT_PATH}/count_tokens"
COMPLETION_PATH = "/v1/completions"

HELLO = {"role": "user", "content": "Hello"}
CAPITAL = {"role": "user", "content": "What is the capital of France?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
]
PREFILL: dict[str, Any] = {
    "messages": [CAPITAL, {"role": "assistant", "content": "The capital of"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (
            CHAT_PATH,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]},
            "messages.0.content.0",
        ),
        (
            CHAT_PATH,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}],
                    }
                ]
            },
            "messages.0.content.0",
        ),
        (
            CHAT_PATH,
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "a"}}]}]},
            "messages",
        ),
        (CHAT_PATH, {"stop": [""]}, "stop"),
        (CHAT_PATH, {"n": 2, "temperature": 0}, "n"),
        (CHAT_PATH, {"reasoning_effort": "huge"}, "reasoning_effort"),
        (CHAT_PATH, {"top_logprobs": 1}, "top_logprobs"),
        (CHAT_PATH, {"logprobs": True, "top_logprobs": 100}, "logprobs"),
        (CHAT_PATH, {"tools": []}, "tools"),
        (CHAT_PATH, {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
        (CHAT_PATH, {"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type"),
        (CHAT_PATH, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT_PATH, {"response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT_PATH, {"max_tokens": 10**6}, "max_tokens"),
        (CHAT_PATH, {"chat_template": "{{ messages }}"}, "chat_template"),
        (COMPLETION_PATH, {"prompt": "a", "suffix": "b"}, "suffix"),
        (CHAT_PATH, {"guided_choice": ["a", "b"]}, "guided_choice"),
        (CHAT_PATH, {"structured_outputs": {"regex": "["}}, None),
        (CHAT_PATH, {"priority": -1}, "priority"),
        (CHAT_PATH, {"min_tokens": 9, "max_tokens": 3}, None),
        (CHAT_PATH, {"presence_penalty": 3}, None),
        (COMPLETION_PATH, {"prompt": "a", "best_of": 2}, "best_of"),
        (COMPLETION_PATH, {"prompt": []}, "prompt"),
        (COMPLETION_PATH, {"prompt": [10**8]}, "prompt"),
        (COMPLETION_PATH, {"prompt": ["a", [1]]}, "prompt.0"),
        (COMPLETION_PATH, {"prompt": "a", "logprobs": 100}, "logprobs"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_its_field(
    neuron: NeuronProcess, path: str, change: dict[str, object], param: str | None
) -> None:
    """Ours: nothing is dropped silently; a 400 says which field."""
    body = {"messages": [HELLO]} if path == CHAT_PATH else {}
    answer = neuron.post(path, {"model": CHAT, **body, **change})

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_completion_echoes_its_prompt(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `echo` puts the prompt before the text."""
    body: dict[str, Any] = {"model": CHAT, "prompt": "hello", "max_tokens": 3, "temperature": 0}
    plain = neuron.ask(COMPLETION_PATH, **body)["choices"][0]["text"]
    echoed = neuron.ask(COMPLETION_PATH, **body, echo=True)["choices"][0]["text"]

    assert echoed == f"hello{plain}"


def test_prompt_of_tokens_is_the_prompt_of_its_text(neuron: NeuronProcess) -> None:
    """OpenAI API reference: strings, token ids, and lists of both mean the same."""
    body = {"model": CHAT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    words = ["hello there", "bye"]
    tokens = [
        neuron.ask("/tokenize", model=CHAT, prompt=word, add_special_tokens=False)["tokens"]
        for word in words
    ]

    texts = neuron.ask(COMPLETION_PATH, prompt=words, **body)
    ids = neuron.ask(COMPLETION_PATH, prompt=tokens, **body)
    one = neuron.ask(COMPLETION_PATH, prompt=tokens[0], **body)

    assert texts["usage"] == ids["usage"]
    assert [c["text"] for c in texts["choices"]] == [c["text"] for c in ids["choices"]]
    assert one["choices"][0]["text"] == texts["choices"][0]["text"]


def test_completion_has_log_probabilities(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `logprobs` of a completion, by token."""
    answer = neuron.ask(
        COMPLETION_PATH, model=CHAT, prompt="hello", max_tokens=3, logprobs=2, ignore_eos=True
    )

    found = answer["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == answer["choices"][0]["text"]
    assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == 3


def test_embedding_of_tokens_is_that_of_their_text(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `input` may be token ids, or lists of them, in both encodings."""
    tokens = neuron.ask("/tokenize", model=EMBED, prompt="hello")["tokens"]

    text = neuron.ask("/v1/embeddings", model=EMBED, input="hello")
    ids = neuron.ask("/v1/embeddings", model=EMBED, input=tokens)
    packed = neuron.ask(
        "/v1/embeddings", model=EMBED, input=[tokens, tokens], encoding_format="base64"
    )

    vector = text["data"][0]["embedding"]
    assert ids["data"][0]["embedding"] == pytest.approx(vector, abs=1e-5)
    assert text["usage"]["prompt_tokens"] == len(tokens)
    for entry in packed["data"]:
        raw = base64.b64decode(entry["embedding"])
        assert struct.unpack(f"<{len(vector)}f", raw) == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "param"),
    [({"dimensions": 8}, "dimensions"), ({"input": []}, "input"), ({"encoding_format": "bytes"}, "encoding_format")],
)  # fmt: skip
def test_embedding_that_is_not_done_is_refused_by_its_field(
    neuron: NeuronProcess, change: dict[str, object], param: str
) -> None:
    """vLLM: a model that was not trained for it has one number of dimensions."""
    answer = neuron.post("/v1/embeddings", {"model": EMBED, "input": "hello", **change})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_new_name_of_the_limit_is_heeded(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `max_completion_tokens` replaces `max_tokens`, and wins."""
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=[HELLO],
        max_completion_tokens=3,
        max_tokens=9,
        ignore_eos=True,
    )

    assert answer["usage"]["completion_tokens"] == 3


def test_limit_is_cut_to_what_the_context_leaves(neuron: NeuronProcess) -> None:
    """vLLM: only a limit above the whole context is refused."""
    answer = neuron.ask(CHAT_PATH, model=CHAT, messages=[CAPITAL], max_tokens=4096, temperature=0)

    assert answer["choices"][0]["finish_reason"] == "stop"


def test_same_seed_gives_the_same_text(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `seed`."""
    body = {"model": CHAT, "prompt": "a", "max_tokens": 16, "temperature": 2, "seed": 7}

    texts = {neuron.ask(COMPLETION_PATH, **body)["choices"][0]["text"] for _ in range(3)}

    assert len(texts) == 1


def test_chat_reports_the_stop_string(neuron: NeuronProcess) -> None:
    """vLLM: `stop_reason` is what matched, null at the natural end."""
    body: dict[str, Any] = {"model": CHAT, "messages": [CAPITAL], "temperature": 0}
    stopped = neuron.ask(CHAT_PATH, **body, stop=["of France"])["choices"][0]
    natural = neuron.ask(CHAT_PATH, **body)["choices"][0]

    assert stopped["message"]["content"] == "The capital "
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", "of France")
    assert (natural["finish_reason"], natural["stop_reason"]) == ("stop", None)


def test_first_chunk_tells_the_prompt(neuron: NeuronProcess) -> None:
    """vLLM: with `continuous_usage_stats` every chunk has the usage so far."""
    answer = neuron.post(
        CHAT_PATH,
        {
            "model": CHAT,
            "messages": [HELLO],
            "max_tokens": 4,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    )

    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    usages = [json.loads(event)["usage"] for event in events]
    whole = usages[-1]["prompt_tokens"]
    assert [usage["prompt_tokens"] for usage in usages] == [whole] * len(usages)
    assert usages[0]["completion_tokens"] == 0
    assert "cached_tokens" in usages[-1]["prompt_tokens_details"]


def test_answer_goes_on_where_the_caller_began(neuron: NeuronProcess) -> None:
    """vLLM: `continue_final_message`; the beginning is not repeated."""
    answer = neuron.ask(CHAT_PATH, model=CHAT, temperature=0, max_tokens=24, **PREFILL)

    assert answer["choices"][0]["message"]["content"] == " France is Paris."


@pytest.mark.parametrize(
    "past",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": "Hi", "name": "ann", "reasoning_content": "So."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": None, "function_call": None},
    ],
)
def test_past_answer_may_have_any_form_of_openai(
    neuron: NeuronProcess, past: dict[str, object]
) -> None:
    """OpenAI API reference: assistant messages with null content, names, refusals."""
    messages = [CAPITAL, past, {"role": "user", "name": "bob", "content": "Hello"}]

    answer = neuron.ask(CHAT_PATH, model=CHAT, messages=messages, max_tokens=3)

    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_old_and_new_name_of_past_thoughts_are_one(neuron: NeuronProcess) -> None:
    """vLLM 0.32 reads `reasoning_content` as `reasoning`."""
    old, new = (
        neuron.ask(
            COUNT_PATH,
            model=CHAT,
            messages=[*CALLED[:1], {**CALLED[1], field: "I have to look. " * 9}, CALLED[2]],
        )
        for field in ("reasoning_content", "reasoning")
    )

    assert old == new


def test_only_one_call_where_only_one_is_wanted(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `parallel_tool_calls: false`."""
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=CALLED[:1],
        tools=[WEATHER],
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=64,
    )

    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


def test_no_call_where_none_is_wanted(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `tool_choice: none`."""
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=CALLED[:1],
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=64,
    )

    assert not answer["choices"][0]["message"].get("tool_calls")
    assert answer["choices"][0]["message"]["content"]


def test_schema_needs_no_strictness_to_be_obeyed(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `strict` is optional; the engine obeys either way."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=[HELLO],
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": schema}},
    )

    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["a"], bool)


def test_json_object_is_json_from_the_first_character(neuron: NeuronProcess) -> None:
    """OpenAI API reference: `json_object`; the tiny model rarely finds the end by itself."""
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=[HELLO],
        max_tokens=32,
        temperature=0,
        response_format={"type": "json_object"},
    )

    assert answer["choices"][0]["message"]["content"].lstrip().startswith("{")
