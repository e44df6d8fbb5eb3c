"""The whole product: gateway, a neuron with the real engine, a simulated one, official SDKs."""

import pathlib
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import (
    Daemon,
    gateway,
    in_flight,
    is_loaded,
    simulated_neuron,
    until,
)

pytestmark = pytest.mark.timeout(300)

CATALOGUE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
[[models]]
id = "sim/cold"
harness = "simulated"
vram_mb = 8000
[aliases]
"tiny" = "{CHAT}"
"""

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
GREETING = "Hello! How can I help you today?"
WEATHER: openai.types.chat.ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "City name"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with simulated_neuron(tmp_path_factory.mktemp("s")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def door(
    neuron: NeuronProcess, simulated: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A gateway in front of both neurons."""
    folder = tmp_path_factory.mktemp("g")
    with gateway(folder, CATALOGUE, real=neuron.url, sim=simulated.url) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(door: Daemon) -> Iterator[openai.OpenAI]:
    with door.sdk() as sdk:
        yield sdk


def test_chat_comes_from_the_real_engine_and_says_where(client: openai.OpenAI) -> None:
    """Issue: the official SDK against the real engine; contract: headers on answers."""
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO)

    answer = raw.parse()
    assert answer.choices[0].message.content == GREETING
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert raw.headers["x-cortex-node"] == "real"
    assert raw.headers["x-cortex-model"] == CHAT
    assert raw.headers["x-request-id"]


def test_stream_says_the_same_and_ends_with_usage(client: openai.OpenAI) -> None:
    """OpenAI: `include_usage` adds one chunk with empty choices."""
    chunks = list(
        client.chat.completions.create(
            model=CHAT, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == GREETING
    assert len(chunks) > 5
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


def test_an_alias_is_served_under_its_own_name(client: openai.OpenAI) -> None:
    """Ours: the body is rewritten for the engine, which knows one name."""
    answer = client.chat.completions.create(model="tiny", messages=HELLO)

    assert answer.choices[0].message.content == GREETING
    assert "tiny" in [model.id for model in client.models.list()]


def test_completions_and_embeddings_work_through_the_gateway(client: openai.OpenAI) -> None:
    """Issue: completions, embeddings; the SDK asks for base64 by default."""
    text = client.completions.create(model=CHAT, prompt="Hello", max_tokens=4)
    vectors = client.embeddings.create(model=EMBED, input=["one", "two"])

    assert text.choices[0].text
    assert [entry.index for entry in vectors.data] == [0, 1]
    assert sum(x * x for x in vectors.data[0].embedding) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
def test_tool_call_comes_as_the_sdk_expects_it(client: openai.OpenAI, choice: str) -> None:
    """Issue: a tool call by `tool_choice`."""
    named: openai.types.chat.ChatCompletionNamedToolChoiceParam = {
        "type": "function",
        "function": {"name": "get_weather"},
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice=named if choice == "named" else choice,  # type: ignore[arg-type]
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert "Paris" in call.function.arguments


def test_both_sdks_list_the_models(client: openai.OpenAI, door: Daemon) -> None:
    """Contract: one object that both dialects' SDKs accept; ids with a slash, either way."""
    ids = [model.id for model in client.models.list()]
    with anthropic.Anthropic(base_url=door.url, api_key="unused", max_retries=0) as other:
        others = [model.id for model in other.models.list()]

    assert ids == others == sorted([CHAT, EMBED, "sim/cold", "tiny"])
    assert client.models.retrieve(CHAT).id == CHAT
    assert door.get(f"/v1/models/{CHAT}").json()["loaded"] is True


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b'{"model": "nope", "messages": []}', 404, "model_not_found", "model"),
        (b"{nope", 400, "invalid_json", None),
        (b'{"messages": []}', 400, None, "model"),
        (b'{"model": "cortex/tiny", "messages": "x"}', 400, None, "messages"),
        (
            b'{"model": "cortex/tiny", "messages": [{"role": "user", "content": "Hello"}],'
            b' "temperature": -1}',
            400,
            None,
            "temperature",
        ),
    ],
)
def test_bad_requests_are_answered_in_the_dialect(
    door: Daemon, body: bytes, status: int, code: str | None, param: str | None
) -> None:
    """Contract: the error table, whether gateway, neuron or engine finds the mistake."""
    answer = httpx.post(f"{door.url}/v1/chat/completions", content=body, timeout=30)

    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert error["param"] == param


def test_a_cold_model_is_loaded_while_the_stream_is_held(client: openai.OpenAI) -> None:
    """Issue: transparent cold load on the other node."""
    raw = client.chat.completions.with_raw_response.create(
        model="sim/cold", messages=HELLO, max_tokens=3
    )

    assert raw.headers["x-cortex-node"] == "sim"
    assert raw.headers["x-cortex-cold-start"] == "true"
    assert raw.parse().choices[0].message.content


def test_a_caller_that_leaves_stops_the_real_engine(
    client: openai.OpenAI, neuron: NeuronProcess
) -> None:
    """Issue: aborts in the engine within a second, seen in the engine's own gauge."""
    stream = client.chat.completions.create(
        model=CHAT, messages=HELLO, max_tokens=3900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))

    stream.close()

    until(lambda: neuron.model(CHAT)["in_flight"] == 0)
    until(lambda: all(n == 0 for n in neuron.series("vllm:num_requests_running").values()))


def test_the_real_models_live_on_when_the_other_node_dies(
    door: Daemon, client: openai.OpenAI, neuron: NeuronProcess, tmp_path: pathlib.Path
) -> None:
    """Issue: one real, one simulated neuron behind one gateway; kill one, bring it back."""
    with (
        simulated_neuron(tmp_path) as victim,
        gateway(tmp_path, CATALOGUE, real=neuron.url, sim=victim.url) as own,
        own.sdk() as sdk,
    ):
        stream = sdk.chat.completions.create(
            model="sim/cold",
            messages=HELLO,
            max_tokens=4000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        assert in_flight(victim) == 1
        victim.kill()
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
        until(lambda: not is_loaded(own, "sim/cold"))
        alive = sdk.chat.completions.create(model=CHAT, messages=HELLO)
        with simulated_neuron(tmp_path, port=victim.port):
            until(lambda: own.get("/health").json()["status"] == "ok")
            back = sdk.chat.completions.create(model="sim/cold", messages=HELLO, max_tokens=3)

    assert alive.choices[0].message.content == GREETING
    assert back.choices[0].message.content
