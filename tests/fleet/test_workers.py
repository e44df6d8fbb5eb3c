"""A gateway of two workers, beside the same of one: nobody can tell them apart."""

import concurrent.futures
import os
import pathlib
import re
import signal
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.fleet.daemons import CATALOGUE, Daemon, gateway, in_flight, simulated_neuron, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]

ENDLESS = {"ignore_eos": True}

RESPONSES = '[gateway.responses]\nstore = true\npath = "{path}"\n'


@pytest.fixture
def neuron(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    with simulated_neuron(tmp_path, rate=50) as daemon:
        yield daemon


@pytest.fixture(params=[1, 2])
def door(
    tmp_path: pathlib.Path, neuron: Daemon, request: pytest.FixtureRequest
) -> Iterator[Daemon]:
    with gateway(tmp_path, told=f"workers = {request.param}\n", sim=neuron.url) as daemon:
        yield daemon


def ask(client: openai.OpenAI, tokens: int = 5) -> str | None:
    answer = client.chat.completions.create(
        model="fast", messages=HELLO, max_tokens=tokens, extra_body=ENDLESS
    )
    return answer.choices[0].finish_reason


def stream(client: openai.OpenAI, tokens: int) -> int | str:
    """Return how many pieces came, or that the stream was cut."""
    pieces = 0
    try:
        for chunk in client.chat.completions.create(
            model="fast", messages=HELLO, max_tokens=tokens, stream=True, extra_body=ENDLESS
        ):
            pieces += bool(chunk.choices and chunk.choices[0].delta.content)
    except (openai.APIError, httpx.HTTPError):
        return "cut"
    return pieces


def metrics_url(door: Daemon) -> str:
    found = re.search(r"metrics on (\S+)", "".join(door.log))
    assert found
    return f"http://{found[1]}/metrics"


def series(door: Daemon) -> dict[str, float]:
    """Return the series by name and labels."""
    text = httpx.get(metrics_url(door), timeout=10.0).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def requests(door: Daemon) -> float:
    """Return how many requests were counted."""
    return sum(v for k, v in series(door).items() if k.startswith("cortex_requests_total{"))


def children(door: Daemon) -> list[int]:
    path = pathlib.Path(f"/proc/{door.process.pid}/task/{door.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_what_callers_get_is_the_same(door: Daemon) -> None:
    """A cold load, streams, other paths and errors, as of one process."""
    with door.sdk() as client:
        assert ask(client) == "length"
        assert stream(client, 20) == 20
        assert client.models.list().data
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=HELLO)
    answer = door.get("/admin/decisions")
    assert answer.status_code == 200
    assert door.get("/nothing").status_code == 404
    assert httpx.get(door.url + "/v1/chat/completions").status_code == 405
    tags = door.get("/api/tags")
    assert [name for name, _ in tags.headers.multi_items()].count("x-request-id") == 1


def test_decisions_and_figures_are_those_of_all(door: Daemon) -> None:
    """The journal has every request, and a scrape counts each once."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: asked(door, number), range(16)))
    for request_id in ids:
        found = door.get(f"/admin/decisions?request={request_id}").json()["decisions"]
        assert {one["request_id"] for one in found} == {request_id}
        assert [one["kind"] for one in found].count("route") == 1
    until(lambda: requests(door) == 16)
    got = series(door)
    assert sum(v for k, v in got.items() if k.startswith("cortex_requests_in_flight")) == 0
    assert got["cortex_request_body_bytes"] == 0
    assert (
        sum(v for k, v in got.items() if k.startswith("cortex_request_duration_seconds_count"))
        == 16
    )


def asked(door: Daemon, number: int) -> str:
    body = {"model": "fast", "messages": HELLO, "max_tokens": 3}
    # A connection each, so that all workers get some.
    headers = {"x-request-id": f"test-{number}"}
    answer = httpx.post(f"{door.url}/v1/chat/completions", json=body, headers=headers, timeout=60.0)
    assert answer.status_code == 200
    assert answer.headers["x-cortex-node"] == "sim"
    return answer.headers["x-request-id"]


def test_a_caller_that_leaves_frees_the_node(door: Daemon, neuron: Daemon) -> None:
    with door.sdk() as client:
        ask(client)
        with client.chat.completions.create(
            model="fast", messages=HELLO, max_tokens=4000, stream=True, extra_body=ENDLESS
        ) as answer:
            next(iter(answer))
            assert in_flight(neuron) == 1
        until(lambda: in_flight(neuron) == 0)


def test_responses_are_kept_for_all(tmp_path: pathlib.Path, neuron: Daemon) -> None:
    more = RESPONSES.format(path=tmp_path / "responses.sqlite")
    with gateway(tmp_path, told="workers = 2\n", more=more, sim=neuron.url) as door:
        for _ in range(4):
            with door.sdk() as client:
                made = client.responses.create(model="fast", input="Hello", max_output_tokens=16)
            with door.sdk() as client:
                assert client.responses.retrieve(made.id).id == made.id


BOUND = "vram_mb = 8000\nmax_in_flight = {places}\n[[models]]"


@pytest.mark.parametrize(("workers", "places"), [(1, 2), (2, 2), (2, 12)])
def test_a_replica_gets_no_more_than_its_share(
    tmp_path: pathlib.Path, workers: int, places: int
) -> None:
    """Lines are one for all workers, and so are the places that some of them have ahead."""
    most, jobs_count = 0, 6 * places
    catalogue = CATALOGUE.replace("vram_mb = 8000\n[[models]]", BOUND.format(places=places))
    with (
        simulated_neuron(tmp_path, rate=50, together=64) as neuron,
        gateway(tmp_path, catalogue, told=f"workers = {workers}\n", sim=neuron.url) as door,
        concurrent.futures.ThreadPoolExecutor(3 * places) as pool,
    ):
        jobs = [pool.submit(asked, door, number) for number in range(jobs_count)]
        while not all(job.done() for job in jobs):
            most = max(most, in_flight(neuron))
        for job in jobs:
            job.result()
        assert most <= places
        until(lambda: requests(door) == jobs_count)


def test_a_worker_that_dies_takes_only_its_own_with_it(tmp_path: pathlib.Path) -> None:
    """Issue: restart of a worker loses no stream but its own; counters and places come back."""
    with (
        simulated_neuron(tmp_path, rate=20, together=64) as neuron,
        gateway(tmp_path, told="workers = 2\n", sim=neuron.url) as door,
        concurrent.futures.ThreadPoolExecutor(24) as pool,
    ):
        with door.sdk() as client:
            ask(client)
        until(lambda: requests(door) == 1)
        until(lambda: sum(v for k, v in series(door).items() if "worker_up" in k) == 2)
        clients = [door.sdk() for _ in range(24)]
        jobs = [pool.submit(stream, client, 120) for client in clients]
        until(lambda: in_flight(neuron) == 24)
        victim = children(door)[0]
        os.kill(victim, signal.SIGKILL)
        answers = [job.result(timeout=120) for job in jobs]
        assert answers.count(120) + answers.count("cut") == 24
        assert answers.count(120) > 0
        assert answers.count("cut") > 0
        until(lambda: in_flight(neuron) == 0)
        until(lambda: series(door)["cortex_worker_restarts_total"] == 1)
        until(lambda: sum(v for k, v in series(door).items() if "worker_up" in k) == 2)
        until(lambda: requests(door) >= 1 + answers.count(120))
        until(lambda: sum(v for k, v in series(door).items() if "requests_in_flight" in k) == 0)
        with door.sdk() as client:
            assert ask(client) == "length"


def test_a_reload_reaches_all(tmp_path: pathlib.Path, neuron: Daemon) -> None:
    with gateway(tmp_path, told="workers = 2\n", sim=neuron.url) as door:
        catalogue = tmp_path / "models.toml"
        catalogue.write_text(catalogue.read_text() + '"quick" = "sim/fast"\n')
        door.process.send_signal(signal.SIGHUP)

        def knows() -> bool:
            body = {"model": "quick", "messages": HELLO, "max_tokens": 3}
            answers = [
                httpx.post(f"{door.url}/v1/chat/completions", json=body, timeout=60.0)
                for _ in range(8)
            ]
            return all(answer.status_code == 200 for answer in answers)

        until(knows)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_lets_streams_end(tmp_path: pathlib.Path, neuron: Daemon, workers: int) -> None:
    with (
        gateway(tmp_path, told=f"workers = {workers}\n", sim=neuron.url) as door,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        with door.sdk() as client:
            ask(client)
        clients = [door.sdk() for _ in range(8)]
        jobs = [pool.submit(stream, client, 100) for client in clients]
        until(lambda: in_flight(neuron) == 8)
        left = children(door)
        door.process.terminate()
        assert [job.result(timeout=60) for job in jobs] == [100] * 8
        assert door.process.wait(60) == 0
        assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in left)


def test_workers_end_when_the_control_process_is_killed(
    tmp_path: pathlib.Path, neuron: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does anything of them stay on the disk."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with gateway(tmp_path, told="workers = 2\n", sim=neuron.url) as door:
        left = children(door)
        door.kill()
        until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in left))
    assert not list(scratch.iterdir())
