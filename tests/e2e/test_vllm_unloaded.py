"""What is known of tokens without an engine, which must be what the engine says."""

import concurrent.futures
from typing import Any

import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess, kill, wait_for
from tests.e2e.test_vllm_counting import CONVERSATIONS, COUNT_PATH, HELLO

pytestmark = pytest.mark.timeout(600)


def asked(path: str, daemon: NeuronProcess, body: dict[str, Any]) -> tuple[int, Any]:
    answer = daemon.post(path, {"model": CHAT, **body})
    return answer.status_code, answer.json()


TEXTS = ["", "Hello", "a " * 300, "größer 日本語 🙂🙂", "\x00\n\t <|im_start|>user", "{}[]();" * 40]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"count {name}": (COUNT_PATH, body) for name, body in CONVERSATIONS.items()},
    **{
        f"count text {number}": (COUNT_PATH, {"messages": [{"role": "user", "content": text}]})
        for number, text in enumerate(TEXTS)
    },
    **{
        f"tokenize text {number}": ("/tokenize", {"prompt": text, "return_token_strs": True})
        for number, text in enumerate(TEXTS)
    },
    **{
        f"tokenize {name}": ("/tokenize", {**body, "add_generation_prompt": True})
        for name, body in CONVERSATIONS.items()
        if "prefill" not in name
    },
    "detokenize": ("/detokenize", {"tokens": [1, 2, 3, 50, 500]}),
    "over the context": (COUNT_PATH, {"messages": [{"role": "user", "content": "a " * 6000}]}),
    "far over": (COUNT_PATH, {"messages": [{"role": "user", "content": "word " * 99_000}]}),
    "too long a text": ("/tokenize", {"prompt": "word " * 99_000}),
    "no messages": (COUNT_PATH, {"messages": []}),
    "no JSON": (COUNT_PATH, {"messages": "text"}),
    "an image": (
        COUNT_PATH,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                }
            ]
        },
    ),
    "another template": (COUNT_PATH, {"messages": [HELLO], "chat_template": "x"}),
    "unknown token": ("/detokenize", {"tokens": [10**9]}),
}


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=list(BODIES))
def test_files_say_what_the_engine_says(
    neuron: NeuronProcess, own_neuron: NeuronProcess, path: str, body: dict[str, Any]
) -> None:
    """Ours: the same answers and the same refusals, while nothing is loaded."""
    assert asked(path, own_neuron, body) == asked(path, neuron, body)
    assert own_neuron.http.get("/models").json() == []


def test_embedding_model_has_tokens_and_no_conversations(own_neuron: NeuronProcess) -> None:
    """Ours: as its engine would answer."""
    tokens = own_neuron.ask("/tokenize", model=EMBED, prompt="hello world")
    counted = own_neuron.post(COUNT_PATH, {"model": EMBED, "messages": [HELLO]})

    assert tokens["count"] == len(tokens["tokens"]) > 0
    assert counted.status_code == 400
    assert counted.json()["error"]["param"] == "model"


def test_model_without_files_is_refused_as_ever(own_neuron: NeuronProcess) -> None:
    """Ours: 404, and another node may be asked."""
    answer = own_neuron.post(COUNT_PATH, {"model": "org/nobody-has-this", "messages": [HELLO]})

    assert answer.status_code == 404
    assert answer.headers["x-cortex-not-admitted"] == "1"
    assert answer.json()["error"]["code"] == "model_not_found"


def test_many_questions_at_once_get_their_own_answers(own_neuron: NeuronProcess) -> None:
    """Ours: whoever asks, and whoever leaves in between."""
    lengths = list(range(1, 25))

    def count(length: int) -> int:
        tokens: int = own_neuron.ask("/tokenize", model=CHAT, prompt="a " * length)["count"]
        return tokens

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(count, lengths))

    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)


def test_token_process_that_was_killed_is_started_again(own_neuron: NeuronProcess) -> None:
    """Ours: no question is lost but the one that it had, and the daemon lives."""
    own_neuron.ask("/tokenize", model=CHAT, prompt="a")
    (process,) = own_neuron.commands("neuron.engines.vllm_tokens")
    kill(process)
    wait_for(lambda: not own_neuron.commands("neuron.engines.vllm_tokens"), 30)

    wait_for(
        lambda: own_neuron.post("/tokenize", {"model": CHAT, "prompt": "a"}).status_code == 200, 120
    )
