"""A count of tokens is what the real engine then reports, whatever is in the conversation."""

from typing import Any

import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
COUNT_PATH = f"{CHAT_PATH}/count_tokens"

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
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [HELLO]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, HELLO]},
    "several systems": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            HELLO,
            {"role": "system", "content": "Be quick."},
        ]
    },
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, HELLO]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}] * 2}]},
    "tools": {"messages": [HELLO], "tools": [WEATHER]},
    "tools not to be used": {"messages": [HELLO], "tools": [WEATHER], "tool_choice": "none"},
    "forced tool": {"messages": [HELLO], "tools": [WEATHER], "tool_choice": "required"},
    "tool history": {"messages": CALLED, "tools": [WEATHER]},
    "reasoning effort": {"messages": [HELLO], "reasoning_effort": "high"},
    "no reasoning": {"messages": [HELLO], "reasoning_effort": "none"},
    "template arguments": {"messages": [HELLO], "chat_template_kwargs": {"enable_thinking": True}},
    "reasoning history": {
        "messages": [HELLO, {"role": "assistant", "content": "Hi", "reasoning": "So."}, HELLO]
    },
    "prefill": {
        "messages": [CAPITAL, {"role": "assistant", "content": "The capital of"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
}


@pytest.mark.parametrize("body", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_count_is_what_the_answer_reports(neuron: NeuronProcess, body: dict[str, Any]) -> None:
    """Ours: `prompt_tokens` of a count equals `usage.prompt_tokens` of the same body."""
    counted = neuron.ask(COUNT_PATH, model=CHAT, stream=True, max_tokens=10**6, **body)
    answered = neuron.ask(CHAT_PATH, model=CHAT, max_tokens=1, **body)

    assert counted == {
        "object": "chat.completion.token_count",
        "model": CHAT,
        "prompt_tokens": answered["usage"]["prompt_tokens"],
    }


def test_prompt_over_the_context_is_counted(neuron: NeuronProcess) -> None:
    """Ours: clients count to learn how much they are over."""
    one, two = (
        neuron.ask(COUNT_PATH, model=CHAT, messages=[{"role": "user", "content": "a " * words}])
        for words in (1000, 6000)
    )

    assert two["prompt_tokens"] > 4096
    assert two["prompt_tokens"] - one["prompt_tokens"] >= 5000


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (
            {"messages": [{"role": "user", "content": "word " * 99_000}]},
            "context_length_exceeded",
            "messages",
        ),
        ({"messages": []}, None, "messages"),
        ({"messages": "text"}, None, "messages"),
        ({}, None, "messages"),
    ],
)
def test_count_is_refused_as_the_answer_would_be(
    neuron: NeuronProcess, body: dict[str, object], code: str | None, param: str
) -> None:
    """Ours: the errors of a chat completion, with the model's own limit."""
    counted, answered = (
        neuron.post(path, {"model": CHAT, **body}) for path in (COUNT_PATH, CHAT_PATH)
    )

    error = counted.json()["error"]
    assert counted.status_code == answered.status_code == 400
    assert error == answered.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_count_is_not_for_an_embedding_model(neuron: NeuronProcess) -> None:
    """Ours: no chat, no count."""
    assert neuron.post(COUNT_PATH, {"model": EMBED, "messages": [HELLO]}).status_code == 400


def test_count_generates_nothing(neuron: NeuronProcess) -> None:
    """Ours: the engine sees no request."""

    def generated() -> float:
        series = neuron.series("vllm:generation_tokens_total")
        return sum(value for labels, value in series.items() if f'model="{CHAT}"' in labels)

    before = generated()
    neuron.ask(COUNT_PATH, model=CHAT, messages=[HELLO])

    assert generated() == before
