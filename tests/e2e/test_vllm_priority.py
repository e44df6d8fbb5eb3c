"""The real engine, scheduling by priority: what callers say reaches it."""

import concurrent.futures
import contextlib
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess, wait_for

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
HELLO = {"role": "user", "content": "Hello"}
ENDLESS = {"model": CHAT, "messages": [HELLO], "ignore_eos": True}


@pytest.fixture(scope="module")
def ranking(own_neuron: NeuronProcess) -> NeuronProcess:
    """A neuron whose engine runs one request at a time, and is given all that there are."""
    engine = {"scheduling_policy": "priority", "max_num_seqs": 1}
    answer = own_neuron.load(CHAT, max_in_flight=16, max_share=1.0, engine=engine)
    assert answer.status_code == 200, answer.text
    return own_neuron


def has_queued(neuron: NeuronProcess, count: int) -> bool:
    """Return whether so many wait; with so many places, inside the engine alone."""
    (model,) = httpx.get(f"{neuron.url}/health", timeout=5.0).json()["models"]
    return bool(model["queued"] == count)


@contextlib.contextmanager
def occupied(neuron: NeuronProcess) -> Iterator[None]:
    """Have the engine busy while the context is open."""
    body = {**ENDLESS, "max_tokens": 4000, "stream": True, "priority": -100}
    with httpx.stream("POST", neuron.url + CHAT_PATH, json=body, timeout=60.0) as answer:
        # Held: the stream is closed with its iterator.
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        yield


def test_header_ranks_requests_inside_the_engine(ranking: NeuronProcess) -> None:
    """vLLM: lower numbers of `priority` first; ours: a body's own says more than the header."""
    asked: list[tuple[str, dict[str, str], dict[str, object]]] = [
        ("body says last", {"x-cortex-priority": "high"}, {"priority": 5}),
        ("low", {"x-cortex-priority": "low"}, {}),
        ("nothing", {}, {}),
        ("high", {"x-cortex-priority": "high"}, {}),
        ("body says first", {"x-cortex-priority": "low"}, {"priority": -5}),
    ]
    order: list[str] = []

    def ask(name: str, headers: dict[str, str], fields: dict[str, object]) -> int:
        body = {**ENDLESS, "max_tokens": 200, **fields}
        answer = httpx.post(ranking.url + CHAT_PATH, json=body, headers=headers, timeout=300.0)
        order.append(name)
        return answer.status_code

    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        with occupied(ranking):
            jobs = []
            for number, one in enumerate(asked, 1):
                jobs.append(pool.submit(ask, *one))
                wait_for(partial(has_queued, ranking, number), 60)
        statuses = [job.result() for job in jobs]

    assert statuses == [200] * len(asked)
    assert order == ["body says first", "high", "nothing", "low", "body says last"]


def test_header_is_no_matter_to_an_engine_without_priorities(neuron: NeuronProcess) -> None:
    """vLLM refuses `priority` there; a header that the line heeds must not."""
    body = {"model": CHAT, "messages": [HELLO], "max_tokens": 2}
    headers = {"x-cortex-priority": "high"}
    answer = httpx.post(neuron.url + CHAT_PATH, json=body, headers=headers, timeout=60.0)

    assert answer.status_code == 200
