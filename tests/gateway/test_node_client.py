"""What a neuron's answers and failures become on the gateway's side."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    EngineError,
    InsufficientVramError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UpstreamError,
    UpstreamTimeoutError,
)
from cortex_core.wire.neuron import LoadRequest
from cortex_gateway.clients.node import HttpNodeClient, NodePatience
from cortex_gateway.clients.node_errors import MAX_REASON_CHARACTERS
from cortex_gateway.clients.session import open_session
from cortex_gateway.settings import Timeouts
from tests.fakes.neuron import FakeNeuron, black_hole, running
from tests.gateway.fleet import MODEL, NODE, PATIENT

HASTY = NodePatience(poll_s=0.2, events_s=0.2, load_s=0.2)
REQUEST = LoadRequest(model_id=MODEL, harness="simulated")


@asynccontextmanager
async def client_of(url: str, patience: NodePatience = PATIENT) -> AsyncIterator[HttpNodeClient]:
    async with asyncio.timeout(5), open_session(Timeouts()) as session:
        yield HttpNodeClient(name=NODE, endpoint=url, session=session, patience=lambda: patience)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, None, InvalidRequestError),
        (422, None, InvalidRequestError),
        (404, "not_found", NotFoundError),
        (409, None, ConflictError),
        (500, None, EngineError),
        (503, "draining", DrainingError),
        (503, None, UnavailableError),
        (507, "insufficient_vram", InsufficientVramError),
    ],
)
async def test_refused_load_keeps_its_kind_and_its_reason(
    status: int, code: str | None, kind: type[RequestError]
) -> None:
    """Contract: errors of `/models/load`; of a longer text the first line is the reason."""
    neuron = FakeNeuron()
    neuron.load_error = (status, {"error": {"message": "no\nstack", "code": code}})

    async with running(neuron), client_of(neuron.url) as client:
        with pytest.raises(RequestError) as caught:
            await client.load(REQUEST)

    assert type(caught.value) is kind
    assert caught.value.message == "no"


@pytest.mark.parametrize("answer", [{}, {"error": {}}, {"error": ""}, {"detail": ["x"]}])
async def test_refusal_without_a_reason_has_its_status(answer: dict[str, object]) -> None:
    """Ours: somebody has to search for it."""
    neuron = FakeNeuron()
    neuron.load_error = (500, answer)

    async with running(neuron), client_of(neuron.url) as client:
        with pytest.raises(EngineError, match="status 500"):
            await client.load(REQUEST)


async def test_long_reason_is_cut() -> None:
    """Ours: it goes into `/v1/models` and error answers."""
    neuron = FakeNeuron()
    neuron.load_error = (500, {"error": "x" * 10_000})

    async with running(neuron), client_of(neuron.url) as client:
        with pytest.raises(EngineError) as caught:
            await client.load(REQUEST)

    assert caught.value.message == "x" * MAX_REASON_CHARACTERS


async def test_load_that_takes_too_long_is_told_as_silence() -> None:
    """Ours: `load_s` bounds it."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()

    async with running(neuron), client_of(neuron.url, HASTY) as client:
        with pytest.raises(UpstreamTimeoutError, match="beast is silent"):
            await client.load(REQUEST)


async def test_black_hole_is_given_up_in_time() -> None:
    """Ours: accepts, never answers."""
    async with black_hole() as url, client_of(url, HASTY) as client:
        with pytest.raises(UpstreamTimeoutError):
            await client.report()
        with pytest.raises(UpstreamTimeoutError):
            await client.discovery()
        with pytest.raises(UpstreamTimeoutError):
            await anext(client.events())


async def test_refused_connection_is_told_without_the_address() -> None:
    """Ours: these texts reach callers."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()

    async with client_of(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(UpstreamError) as caught:
            await client.report()

    assert caught.value.message == "beast cannot be reached: Connection refused"


async def test_answer_of_another_program_is_no_report() -> None:
    """Ours: a wrong port in the settings is noticed."""
    neuron = FakeNeuron()

    async with running(neuron), client_of(neuron.url + "/health") as client:
        with pytest.raises(UpstreamError, match="status 404"):
            await client.report()


async def test_a_given_neuron_tells_where_each_model_is_served() -> None:
    """Contract: `GET /models/{id}/endpoint`, asked once while the model stays loaded."""
    neuron = FakeNeuron(is_given_only=True)
    neuron.set_model("org/own", "loaded")
    neuron.set_model("org/shared", "loaded")
    neuron.endpoints["org/own"] = "http://localhost:8001"

    async with running(neuron), client_of(neuron.url) as client:
        await client.report()
        own, shared = (await client.report()).replicas

    assert own.endpoint == "http://127.0.0.1:8001"
    assert shared.endpoint is None
    assert neuron.requests["/models/org/own/endpoint"] == 1


async def test_a_neuron_of_ours_is_not_asked_for_endpoints() -> None:
    """Ours: its models are all served at its own address."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")

    async with running(neuron), client_of(neuron.url) as client:
        (replica,) = (await client.report()).replicas

    assert replica.endpoint is None
    assert neuron.requests[f"/models/{MODEL}/endpoint"] == 0


async def test_events_without_a_stream_are_told_apart() -> None:
    """Ours: absence means polling for good, any other trouble may pass."""
    given = FakeNeuron(is_given_only=True)
    broken = FakeNeuron()
    broken.hidden_paths = {"/events"}

    async with running(given), client_of(given.url) as client:
        with pytest.raises(NotFoundError):
            await anext(client.events())
    async with running(broken), client_of(broken.url) as client:
        with pytest.raises(UpstreamError, match="status 500"):
            await anext(client.events())


async def test_each_event_comes_with_all_that_is_known() -> None:
    """Ours: the snapshot's reducers need no increments."""
    neuron = FakeNeuron()
    neuron.set_model("org/first", "loaded")

    async with running(neuron), client_of(neuron.url) as client:
        events = client.events()
        first = await anext(events)
        neuron.set_model(MODEL, "loading")
        second = await anext(events)
        neuron.set_model("org/first", "unloaded")
        third = await anext(events)
        await events.aclose()

    assert first.facts is not None
    assert second.facts is None
    seen = [
        [replica.id.model for replica in news.report.replicas] if news.report else None
        for news in (first, second, third)
    ]
    assert seen == [["org/first"], ["org/first", MODEL], [MODEL]]
