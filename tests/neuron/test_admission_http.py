"""Requests before an engine, over real sockets: refused, sent away, told in time."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from tests.neuron.conftest import Json, RunningNeuron, Start

CHAT = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
def one() -> dict[str, object]:
    """Settings of a model that takes one request and lets two wait."""
    return {
        "admission": {"max_in_flight": 1, "max_queue": 2, "max_share": 1.0},
        "simulated": {"faults": {"a": {"hang": True}}},
    }


def _queued(count: int) -> Callable[[Json], bool]:
    def holds(health: Json) -> bool:
        return [entry["queued"] for entry in health["models"]] == [count]

    return holds


async def _code(neuron: RunningNeuron) -> tuple[int, str, str | None]:
    status, body, headers = await neuron.post(PATH, CHAT)
    return status, body["error"]["code"], headers.get("x-cortex-not-admitted")


async def test_request_that_finds_the_queue_full_is_refused_at_once(
    start: Start, one: dict[str, object]
) -> None:
    """Issue: 503 `server_is_overloaded` with the time after which to come back."""
    async with start(**one) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_code(neuron)) for _ in range(3)]
            health = await neuron.until(_queued(2))
            status, body, headers = await neuron.post(PATH, CHAT)
            text = await (await neuron.session.get(neuron.url + "/metrics")).text()
            await neuron.post("/models/unload", {"model_id": "a", "force": True})

    assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
    assert headers["x-cortex-not-admitted"] == "1"
    assert int(headers["retry-after"]) >= 1
    assert health["models"][0]["in_flight"] == 3
    assert 'neuron_queued{model="a"} 2.0' in text
    assert 'neuron_refusals_total{reason="server_is_overloaded"} 1.0' in text
    # The one that ran was cut; those that waited may be sent elsewhere.
    assert Counter(task.result() for task in asked) == {
        (503, "no_replica", None): 1,
        (503, "no_replica", "1"): 2,
    }


async def test_waiter_that_leaves_frees_its_place(start: Start, one: dict[str, object]) -> None:
    async with start(**one) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(neuron.post(PATH, CHAT))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            waiters = [tasks.create_task(neuron.post(PATH, CHAT)) for _ in range(2)]
            await neuron.until(_queued(2))
            waiters[0].cancel()
            await neuron.until(_queued(1))
            running.cancel()
            await neuron.until(_queued(0))
            health = await neuron.get("/health")
            waiters[1].cancel()
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 0)

    assert health["models"][0]["in_flight"] == 1


async def test_request_that_waits_for_too_long_is_refused(start: Start) -> None:
    async with start(
        admission={"max_in_flight": 1, "max_wait_s": 0.05},
        simulated={"faults": {"a": {"hang": True}}},
    ) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(neuron.post(PATH, CHAT))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            refused = await _code(neuron)
            health = await neuron.get("/health")
            running.cancel()

    assert refused == (503, "server_is_overloaded", "1")
    assert (health["models"][0]["in_flight"], health["models"][0]["queued"]) == (1, 0)


async def test_drain_sends_waiters_elsewhere_and_lets_the_running_one_finish(
    start: Start,
) -> None:
    """Ours: reliability S13; who waits here would only hold the drain up."""
    async with start(admission={"max_in_flight": 1}, simulated={"decode_tok_per_s": 40}) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(neuron.post(PATH, {**CHAT, "max_tokens": 30}))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            waiter = tasks.create_task(_code(neuron))
            await neuron.until(_queued(1))
            neuron.shutdown.ask()

    assert waiter.result() == (503, "draining", "1")
    assert first.result()[0] == 200


async def test_death_of_the_engine_sends_waiters_elsewhere(start: Start) -> None:
    async with start(
        admission={"max_in_flight": 1},
        simulated={"decode_tok_per_s": 40, "faults": {"a": {"die_after_tokens": 20}}},
    ) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(
                neuron.post(PATH, {**CHAT, "max_tokens": 300, "ignore_eos": True})
            )
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            waiter = tasks.create_task(_code(neuron))
            await neuron.until(_queued(1))

    assert first.result()[1]["error"]["code"] == "engine_error"
    status, _, marked = waiter.result()
    assert (status, marked) == (503, "1")


async def test_bounds_of_the_load_go_before_those_of_the_settings(start: Start) -> None:
    async with start(
        admission={"max_in_flight": 9}, simulated={"faults": {"a": {"hang": True}}}
    ) as neuron:
        await neuron.load("a", max_in_flight=1, max_queue=0)
        report = await neuron.model("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(neuron.post(PATH, CHAT))
            await neuron.until(lambda health: health["models"][0]["in_flight"] == 1)
            refused = await _code(neuron)
            running.cancel()

    assert report["max_in_flight"] == 1
    assert refused == (503, "server_is_overloaded", "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_in_flight", 0),
        ("max_queue", -1),
        ("max_wait_s", 0),
        ("max_share", 0),
        ("max_share", 2),
    ],
)
async def test_bound_that_cannot_be_is_a_400_that_names_it(
    start: Start, name: str, value: float
) -> None:
    async with start() as neuron:
        status, body, _ = await neuron.post(
            "/models/load", {"model_id": "a", "harness": "simulated", name: value}
        )

    assert (status, body["error"]["param"]) == (400, name)


async def test_counting_needs_no_place(start: Start, one: dict[str, object]) -> None:
    """Ours: a tokenizer answers, and nobody is to wait behind answers for it."""
    async with start(**one) as neuron:
        await neuron.load("a")
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(neuron.post(PATH, CHAT)) for _ in range(3)]
            await neuron.until(_queued(2))
            status, body, _ = await neuron.post(f"{PATH}/count_tokens", CHAT)
            for task in asked:
                task.cancel()

    assert status == 200
    assert body["prompt_tokens"] > 0


@pytest.mark.parametrize("is_stream", [True, False])
async def test_prompt_that_never_fits_is_refused_while_others_wait(
    start: Start, one: dict[str, object], is_stream: bool
) -> None:
    """Issue: `context_length_exceeded` at once, before a stream opens; the engine hangs here."""
    async with start(**one) as neuron:
        await neuron.load("a", engine={"max_model_len": 100})
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(neuron.post(PATH, CHAT)) for _ in range(2)]
            await neuron.until(_queued(1))
            long = {**CHAT, "stream": is_stream}
            long["messages"] = [{"role": "user", "content": "word " * 200}]
            status, body, headers = await neuron.post(PATH, long)
            fits = {**CHAT, "messages": [{"role": "user", "content": "x" * 200}]}
            waiting = tasks.create_task(neuron.post(PATH, fits))
            health = await neuron.until(_queued(2))
            for task in (*asked, waiting):
                task.cancel()

    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert headers["content-type"].startswith("application/json")
    assert health["models"][0]["in_flight"] == 3
