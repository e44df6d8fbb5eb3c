"""A gateway and simulated neurons as real processes: many callers, deaths, and returns."""

import concurrent.futures
import pathlib
from collections.abc import Iterator

import openai
import pytest

from tests.fleet.daemons import (
    Daemon,
    gateway,
    in_flight,
    is_loaded,
    simulated_neuron,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]

ENDLESS = {"ignore_eos": True}
"""Answers last until `max_tokens`."""

STREAMS = 200

GROWTH_BYTES = 40 << 20
"""What the gateway may grow by from the first 200 open streams to the third time that many."""


@pytest.fixture
def neuron(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    with simulated_neuron(tmp_path) as daemon:
        yield daemon


def stream(client: openai.OpenAI, model: str, tokens: int) -> tuple[int, str | None]:
    """Return how many pieces of text came, and the finish reason."""
    pieces, finish = 0, None
    for chunk in client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=tokens, stream=True, extra_body=ENDLESS
    ):
        pieces += bool(chunk.choices and chunk.choices[0].delta.content)
        finish = chunk.choices[0].finish_reason if chunk.choices else finish
    return pieces, finish


def test_many_streams_complete_and_leave_nothing_behind(
    tmp_path: pathlib.Path, neuron: Daemon
) -> None:
    """Issue: 200 concurrent streams, memory flat, in-flight back to 0."""
    with gateway(tmp_path, sim=neuron.url) as door, door.sdk() as client:
        grown = []
        for _ in range(3):
            with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
                jobs = [pool.submit(stream, client, "sim/fast", 40) for _ in range(STREAMS)]
                answers = [job.result(timeout=120) for job in jobs]
            assert set(answers) == {(40, "length")}
            grown.append(door.rss_bytes())

        until(lambda: in_flight(neuron) == 0)
        assert grown[-1] - grown[0] < GROWTH_BYTES


def test_one_load_serves_all_who_ask_for_a_cold_model(
    tmp_path: pathlib.Path, neuron: Daemon
) -> None:
    """Issue: one load however many ask; by alias or by name."""
    with gateway(tmp_path, sim=neuron.url) as door, door.sdk() as client:
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            jobs = [pool.submit(stream, client, "fast", 5) for _ in range(20)]
            answers = [job.result(timeout=60) for job in jobs]

        assert len(answers) == 20
        loads = [line for line in neuron.log if "model loaded" in line]
        assert len(loads) == 1


def test_a_neuron_that_dies_mid_stream_is_told_and_comes_back(
    tmp_path: pathlib.Path, neuron: Daemon
) -> None:
    """Issue: kill one during a stream and during idle; bring it back."""
    folder = tmp_path / "slow"
    folder.mkdir()
    with (
        simulated_neuron(folder, rate=20) as victim,
        gateway(tmp_path, sim=victim.url) as door,
        door.sdk() as client,
    ):
        chunks = client.chat.completions.create(
            model="sim/fast", messages=HELLO, max_tokens=4000, stream=True, extra_body=ENDLESS
        )
        first = next(iter(chunks))
        victim.kill()
        with pytest.raises(openai.APIError, match=r"before it was complete|ended|cut"):
            for _ in chunks:
                pass

        assert first.choices
        until(lambda: not is_loaded(door, "sim/fast"))
        with pytest.raises(openai.InternalServerError) as refused:
            stream(client, "sim/fast", 5)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]
        # The same address again, another life: discovered anew, and loaded on demand.
        with simulated_neuron(folder, port=victim.port):
            until(lambda: door.get("/health").json()["status"] == "ok")
            assert stream(client, "sim/fast", 5)[0] > 0


def test_a_request_for_a_dead_replica_goes_to_the_other_one(
    tmp_path: pathlib.Path, neuron: Daemon
) -> None:
    """Issue: first-byte failover; nobody sees that a node is gone."""
    folder = tmp_path / "second"
    folder.mkdir()
    with (
        simulated_neuron(folder) as victim,
        gateway(tmp_path, first=neuron.url, second=victim.url) as door,
        door.sdk() as client,
    ):
        for daemon in (neuron, victim):
            assert daemon.load("sim/fast", "simulated") == {"status": "loaded"}
        until(
            lambda: len(client.models.retrieve("sim/fast").model_extra["locations"]) == 2  # type: ignore[index]
        )
        victim.kill()

        answers = [stream(client, "sim/fast", 3) for _ in range(20)]

        assert all(pieces > 0 for pieces, _ in answers)


def test_a_caller_that_leaves_frees_its_place_at_the_neuron(
    tmp_path: pathlib.Path, neuron: Daemon
) -> None:
    """Issue: cancellation reaches the engine."""
    with gateway(tmp_path, sim=neuron.url) as door, door.sdk() as client:
        chunks = client.chat.completions.create(
            model="sim/fast", messages=HELLO, max_tokens=8000, stream=True, extra_body=ENDLESS
        )
        next(iter(chunks))
        until(lambda: in_flight(neuron) == 1)

        chunks.close()

        until(lambda: in_flight(neuron) == 0)
