"""Options of a request that shape what is generated: the real engine heeds each of them."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PLAIN = "The capital of France is Paris."
LONG = {"ignore_eos": True, "max_tokens": 48}
WARM = {"temperature": 2.0, "seed": 7}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}},
    "required": ["city"],
    "additionalProperties": False,
}

Json = dict[str, Any]
Holds = Callable[[Json], bool]


def _text(answer: Json) -> str:
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def _made(least: int) -> Holds:
    return lambda answer: bool(answer["usage"]["completion_tokens"] >= least)


def _has_keys(answer: Json) -> bool:
    return set(json.loads(_text(answer))) == {"city"}


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({"structured_outputs": {"choice": ["Lyon", "Nice"]}}, lambda a: _text(a) in ("Lyon", "Nice")),
        ({"structured_outputs": {"regex": "[0-9]{4}"}}, lambda a: re.fullmatch("[0-9]{4}", _text(a))),
        ({"structured_outputs": {"json": CITY}}, _has_keys),
        ({"structured_outputs": {"grammar": 'root ::= "no" | "nay"'}}, lambda a: _text(a) in ("no", "nay")),
        ({"min_tokens": 30, "max_tokens": 40}, _made(30)),
        ({"n": 3, "temperature": 1.0}, lambda a: [c["index"] for c in a["choices"]] == [0, 1, 2]),
        ({"bad_words": ["Paris"]}, lambda a: "Paris" not in _text(a)),
        ({"stop": ["Paris"]}, lambda a: _text(a).endswith("is ")),
        ({"stop": ["Paris"], "include_stop_str_in_output": True}, lambda a: _text(a).endswith("Paris")),
        ({"prompt_logprobs": 1}, lambda a: len(a["prompt_logprobs"]) == a["usage"]["prompt_tokens"]),
        ({"logprobs": True, "top_logprobs": 3}, lambda a: len(a["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 3),
        ({"return_token_ids": True}, lambda a: len(a["choices"][0]["token_ids"]) == a["usage"]["completion_tokens"]),
    ],
)  # fmt: skip
def test_option_is_heeded(neuron: NeuronProcess, options: Json, holds: Holds) -> None:
    """vLLM: sampling parameters and structured outputs, as its documentation has them."""
    asked = {"model": CHAT, "messages": CAPITAL, "temperature": 0, "max_tokens": 32, **options}

    assert holds(neuron.ask(CHAT_PATH, **asked))


def test_sampling_may_be_narrowed_until_it_is_greedy(neuron: NeuronProcess) -> None:
    """vLLM: `top_k`, `top_p` and `min_p`, each to the likeliest token alone."""
    asked = {"model": CHAT, "messages": CAPITAL, **LONG}
    greedy = _text(neuron.ask(CHAT_PATH, **asked, temperature=0))
    warm = _text(neuron.ask(CHAT_PATH, **asked, **WARM))
    narrowed = [
        _text(neuron.ask(CHAT_PATH, **asked, **WARM, **option))
        for option in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0})
    ]

    assert narrowed == [greedy] * 3
    assert warm != greedy


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 3.0}],
)
def test_penalty_makes_a_text_repeat_itself_less(neuron: NeuronProcess, penalty: Json) -> None:
    """OpenAI, vLLM: each of the three weighs against tokens that were there."""
    asked = {"model": CHAT, "messages": CAPITAL, "temperature": 0, **LONG, "return_token_ids": True}
    plain, shy = (neuron.ask(CHAT_PATH, **asked, **more) for more in ({}, penalty))

    distinct = [len(set(a["choices"][0]["token_ids"])) for a in (plain, shy)]
    assert distinct[1] > distinct[0]


@pytest.mark.parametrize("kind", ["logit_bias", "allowed_token_ids", "stop_token_ids"])
def test_token_is_forced_or_stops(neuron: NeuronProcess, kind: str) -> None:
    """OpenAI, vLLM: options that name tokens."""
    words = neuron.ask("/tokenize", model=CHAT, prompt=PLAIN, add_special_tokens=False)["tokens"]
    last = words[-2]
    choices: dict[str, Json] = {
        "logit_bias": {"logit_bias": {str(last): 100.0}},
        "allowed_token_ids": {"allowed_token_ids": [last]},
        "stop_token_ids": {"stop_token_ids": [last]},
    }
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=CAPITAL,
        temperature=0,
        max_tokens=20,
        return_token_ids=True,
        **choices[kind],
    )

    (choice,) = answer["choices"]
    if kind == "stop_token_ids":
        assert choice["stop_reason"] == last
    else:
        assert set(choice["token_ids"]) == {last}
