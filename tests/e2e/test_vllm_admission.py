"""A model of the real engine with one place, and what becomes of those that wait."""

import concurrent.futures
import contextlib
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess, wait_for

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
HELLO = {"role": "user", "content": "Hello"}
LONG = "word " * 9000


@pytest.fixture(scope="module")
def narrow(own_neuron: NeuronProcess) -> NeuronProcess:
    """A neuron whose model takes one request, and lets two wait."""
    body = {"model_id": CHAT, "harness": "vllm", "max_in_flight": 1, "max_queue": 2}
    answer = own_neuron.post(
        "/models/load",
        {**body, "max_share": 1.0, "engine": {"scheduling_policy": "priority"}},
    )
    assert answer.status_code == 200, answer.text
    return own_neuron


def _waiting(neuron: NeuronProcess) -> int:
    (model,) = httpx.get(f"{neuron.url}/health", timeout=5.0).json()["models"]
    return int(model["in_flight"]) - 1


@contextlib.contextmanager
def occupied(neuron: NeuronProcess) -> Iterator[None]:
    """Have the one place taken while the context is open."""
    body = {"model": CHAT, "messages": [HELLO], "max_tokens": 4000, "ignore_eos": True}
    with httpx.stream(
        "POST", neuron.url + CHAT_PATH, json={**body, "stream": True}, timeout=60.0
    ) as answer:
        # Held: the stream is closed with its iterator.
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        yield


@pytest.mark.parametrize("is_stream", [True, False])
def test_prompt_that_never_fits_does_not_wait(narrow: NeuronProcess, is_stream: bool) -> None:
    """Issue: refused at once, with a status, while the engine's one place is taken."""
    with occupied(narrow):
        body = {"messages": [{"role": "user", "content": LONG}], "stream": is_stream}
        answer = narrow.post(CHAT_PATH, {"model": CHAT, **body})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    # It never had its turn.
    assert answer.headers["x-cortex-not-admitted"] == "1"


def test_those_that_wait_are_answered_and_more_are_refused(narrow: NeuronProcess) -> None:
    """Ours: the engine is given one at a time, and none is lost."""
    short = {"model": CHAT, "messages": [HELLO], "max_tokens": 3}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with occupied(narrow):
            waiting = [pool.submit(narrow.post, CHAT_PATH, short) for _ in range(2)]
            wait_for(lambda: _waiting(narrow) == 2, 30)
            refused = narrow.post(CHAT_PATH, short)
        statuses = [job.result(timeout=300).status_code for job in waiting]
        wait_for(lambda: _waiting(narrow) == -1, 30)

    assert statuses == [200, 200]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert "retry-after" in refused.headers


def test_priority_is_passed_to_an_engine_that_schedules_by_it(narrow: NeuronProcess) -> None:
    """vLLM: `priority` of a request, with `scheduling_policy = "priority"`."""
    answer = narrow.post(
        CHAT_PATH, {"model": CHAT, "messages": [HELLO], "max_tokens": 2, "priority": -3}
    )

    assert answer.status_code == 200
