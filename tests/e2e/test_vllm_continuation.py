"""Going on with an answer that was begun elsewhere: from its text, and exactly from its tokens."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess, wait_for
from tests.fleet.daemons import Daemon, gateway

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
GENERATE_PATH = "/inference/v1/generate"
CAPITAL = {"role": "user", "content": "What is the capital of France?"}
ANSWER = "The capital of France is Paris."
BEGUN = "The capital of"
CATALOGUE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
"""


@pytest.fixture(scope="module")
def door(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, real=neuron.url) as daemon:
        yield daemon


def prompt_of(neuron: NeuronProcess) -> list[int]:
    """Return the token ids of the question, as the engine gets them."""
    tokens: list[int] = neuron.ask("/tokenize", model=CHAT, messages=[CAPITAL])["tokens"]
    return tokens


def generate(neuron: NeuronProcess, tokens: list[int], most: int, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_tokens": most, "ignore_eos": True}
    return neuron.ask(GENERATE_PATH, model=CHAT, token_ids=tokens, sampling_params=sampling, **more)


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("cut", [1, 2, 7, 23, 39])
def test_answer_that_was_cut_goes_on_with_the_same_tokens(neuron: NeuronProcess, cut: int) -> None:
    """Ours: prompt and the tokens so far give the tokens that would have come, wherever the cut."""
    prompt = prompt_of(neuron)
    whole = generate(neuron, prompt, 40)["choices"][0]["token_ids"]

    rest = generate(neuron, [*prompt, *whole[:cut]], 40 - cut)["choices"][0]

    assert len(whole) == 40
    assert rest["token_ids"] == whole[cut:]
    assert rest["finish_reason"] == "length"


def test_stream_that_was_cut_goes_on_with_the_same_tokens(neuron: NeuronProcess) -> None:
    """Ours: a chat stream tells its token ids on request, and another stream goes on from them."""
    asked = {"model": CHAT, "messages": [CAPITAL], "temperature": 0, "max_tokens": 30}
    answer = neuron.post(CHAT_PATH, {**asked, "stream": True, "return_token_ids": True})
    chunks = events_of(answer.text)
    prompt = next(chunk["prompt_token_ids"] for chunk in chunks if chunk.get("prompt_token_ids"))
    told = [
        token
        for chunk in chunks
        for choice in chunk["choices"]
        for token in choice.get("token_ids") or ()
    ]
    assert prompt == prompt_of(neuron)

    sampling = {"temperature": 0, "max_tokens": 30 - 3}
    resumed = neuron.post(
        GENERATE_PATH,
        {
            "model": CHAT,
            "token_ids": [*prompt, *told[:3]],
            "sampling_params": sampling,
            "output_mode": "text",
            "stream": True,
        },
    )

    choices = [choice for event in events_of(resumed.text) for choice in event["choices"]]
    assert told[:3] + [token for choice in choices for token in choice["token_ids"]] == told
    assert ANSWER.endswith("".join(choice["text"] for choice in choices))
    assert choices[-1]["finish_reason"] == "stop"


def test_leaving_a_stream_of_tokens_frees_the_engine(neuron: NeuronProcess) -> None:
    """Ours: as with every other stream."""
    body = {
        "model": CHAT,
        "token_ids": prompt_of(neuron),
        "sampling_params": {"max_tokens": 4000, "ignore_eos": True},
        "stream": True,
    }
    with neuron.http.stream("POST", GENERATE_PATH, json=body) as answer:
        first = next(line for line in answer.iter_lines() if line)
        assert json.loads(first.removeprefix("data: "))["choices"][0]["token_ids"]

    def running() -> float:
        series = neuron.series("vllm:num_requests_running")
        return sum(value for labels, value in series.items() if f'"{CHAT}"' in labels)

    wait_for(lambda: neuron.model(CHAT)["in_flight"] == 0 and running() == 0, 30)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": [10**7]}, "token_ids"),
        ({"token_ids": [5] * 5000}, "messages"),
        ({"sampling_params": {"max_tokens": -1}}, None),
        ({"content_parts": [{"type": "image_url", "url": "http://127.0.0.1/"}]}, "content_parts"),
        ({"features": {"mm_hashes": {}, "mm_placeholders": {}}}, "features"),
        ({"model": EMBED}, "model"),
    ],
)
def test_what_cannot_be_generated_from_is_refused(
    neuron: NeuronProcess, change: dict[str, Any], param: str | None
) -> None:
    """Ours: 400, and nothing is fetched or unpacked on the way."""
    body = {"model": CHAT, "token_ids": [5, 6], "sampling_params": {"max_tokens": 2}, **change}
    answer = neuron.post(GENERATE_PATH, body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert answer.json()["error"]["param"] == param


def test_chat_goes_on_from_its_last_message(neuron: NeuronProcess) -> None:
    """Issue: `continue_final_message` works for every chat model."""
    answer = neuron.ask(
        CHAT_PATH,
        model=CHAT,
        messages=[CAPITAL, {"role": "assistant", "content": BEGUN}],
        continue_final_message=True,
        add_generation_prompt=False,
        temperature=0,
    )

    assert BEGUN + answer["choices"][0]["message"]["content"] == ANSWER


def test_message_goes_on_from_its_prefill(door: Daemon) -> None:
    """Anthropic's API: a last message of the assistant's is gone on with."""
    with anthropic.Anthropic(base_url=door.url, api_key="unused", max_retries=0) as client:
        message = client.messages.create(
            model=CHAT,
            max_tokens=64,
            extra_body={"temperature": 0},
            messages=[
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": BEGUN},
            ],
        )

    text = "".join(block.text for block in message.content if block.type == "text")
    assert BEGUN + text == ANSWER


def test_ollama_chat_goes_on_from_its_last_message(door: Daemon) -> None:
    """Ollama's API: as above."""
    answer = httpx.post(
        f"{door.url}/api/chat",
        timeout=60,
        json={
            "model": CHAT,
            "stream": False,
            "options": {"temperature": 0},
            "messages": [CAPITAL, {"role": "assistant", "content": BEGUN}],
        },
    )

    assert answer.status_code == 200, answer.text
    assert BEGUN + answer.json()["message"]["content"] == ANSWER
