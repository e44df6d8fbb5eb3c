"""Anthropic's official SDK through gateway and neuron to the real engine."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway, until

pytestmark = pytest.mark.timeout(300)

CATALOGUE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
[aliases]
"claude-tiny" = "{CHAT}"
"""

GREETING = "Hello! How can I help you today?"
HELLO: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello"}]
ASK_WEATHER: anthropic.types.MessageParam = {
    "role": "user",
    "content": "What is the weather in Paris?",
}
WEATHER: anthropic.types.ToolParam = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "City name"}},
        "required": ["city"],
    },
}
CALLED: list[anthropic.types.MessageParam] = [
    ASK_WEATHER,
    {
        "role": "assistant",
        "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny, 20 C"}],
    },
]


@pytest.fixture(scope="module")
def door(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, real=neuron.url) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(door: Daemon) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=door.url, api_key="unused", max_retries=0) as sdk:
        yield sdk


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_message_comes_from_the_real_engine(client: anthropic.Anthropic) -> None:
    """Issue: `POST /v1/messages`, usage never zero, `request-id`."""
    raw = client.messages.with_raw_response.create(model=CHAT, max_tokens=64, messages=HELLO)

    message = raw.parse()
    assert text_of(message) == GREETING
    assert message.stop_reason == "end_turn"
    assert message.model == CHAT
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message.id.startswith("msg_")
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["x-cortex-node"] == "real"


def test_stream_has_the_life_of_a_message(client: anthropic.Anthropic) -> None:
    """Issue: message_start with input usage, one block, final usage, message_stop once."""
    with client.messages.stream(model="claude-tiny", max_tokens=64, messages=HELLO) as stream:
        events = [event.type for event in stream]
        message = stream.get_final_message()
    raw = client.messages.create(model="claude-tiny", max_tokens=64, messages=HELLO, stream=True)
    first = next(iter(raw))
    raw.close()

    assert text_of(message) == GREETING
    assert message.model == "claude-tiny"
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    assert events.count("content_block_start") == 1
    assert events.count("content_block_delta") > 3
    assert first.type == "message_start"
    assert first.message.usage.input_tokens == message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


@pytest.mark.parametrize(
    "choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "get_weather"}]
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_tool_is_called(client: anthropic.Anthropic, choice: Any, is_stream: bool) -> None:
    """Issue: tool_choice auto, any, tool; input_json_delta adds up to an object."""
    asked: dict[str, Any] = {
        "model": CHAT,
        "max_tokens": 200,
        "messages": [ASK_WEATHER],
        "tools": [WEATHER],
        "tool_choice": choice,
    }
    if is_stream:
        with client.messages.stream(**asked) as stream:
            message: anthropic.types.Message = stream.get_final_message()
    else:
        message = client.messages.create(**asked)

    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use"
    assert call.name == "get_weather"
    assert call.input == {"city": "Paris"}
    assert call.id


def test_tool_result_is_answered(client: anthropic.Anthropic) -> None:
    """Issue: the turn after a call."""
    message = client.messages.create(model=CHAT, max_tokens=64, messages=CALLED, tools=[WEATHER])

    assert text_of(message) == "The weather in Paris: sunny, 20 C."


def test_the_agent_loop_of_the_sdk_runs_to_its_end(client: anthropic.Anthropic) -> None:
    """Protocol: the tool runner first tries threads, and goes on without when told so."""

    @anthropic.beta_tool(name="get_weather", description="Get the current weather in a city")
    def get_weather(city: str) -> str:
        """Get the current weather in a city.

        Args:
            city: City name
        """
        asked.append(city)
        return "sunny, 20 C"

    asked: list[str] = []
    runner = client.beta.messages.tool_runner(
        model=CHAT,
        max_tokens=200,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[get_weather],
    )
    message = runner.until_done()

    assert asked == ["Paris"]
    assert message.stop_reason == "end_turn"


@pytest.mark.parametrize("is_stream", [False, True])
def test_thinking_is_shown_when_it_is_asked_for(
    client: anthropic.Anthropic, is_stream: bool
) -> None:
    """Issue: thinking first, with an opaque signature; never within the text."""
    asked: dict[str, Any] = {
        "model": CHAT,
        "max_tokens": 2000,
        "messages": HELLO,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    if is_stream:
        with client.messages.stream(**asked) as stream:
            message: anthropic.types.Message = stream.get_final_message()
    else:
        message = client.messages.create(**asked)
    plain = client.messages.create(model=CHAT, max_tokens=200, messages=HELLO)

    kinds = [block.type for block in message.content]
    thought = message.content[0]
    assert kinds == ["thinking", "text"]
    assert thought.type == "thinking"
    assert thought.thinking.strip()
    assert thought.signature
    assert "<think>" not in text_of(message)
    assert thought.thinking.strip() not in text_of(message)
    assert [block.type for block in plain.content] == ["text"]


def test_omitted_thinking_comes_back_as_a_signature(client: anthropic.Anthropic) -> None:
    """Protocol 2.6: no text of it is sent, and the signature brings it back."""
    message = client.messages.create(
        model=CHAT,
        max_tokens=2000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    )
    thought = message.content[0]
    again = client.messages.create(
        model=CHAT,
        max_tokens=200,
        messages=[
            *HELLO,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": "Hello"},
        ],
    )

    assert thought.type == "thinking"
    assert thought.thinking == ""
    assert thought.signature
    assert again.stop_reason == "end_turn"


def test_stop_sequence_is_reported(client: anthropic.Anthropic) -> None:
    """Issue: `stop_sequence` names the one that matched."""
    message = client.messages.create(
        model=CHAT, max_tokens=64, messages=HELLO, stop_sequences=["xyz", "help"]
    )

    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "help"
    assert text_of(message) == "Hello! How can I "


def test_limit_of_tokens_is_reported(client: anthropic.Anthropic) -> None:
    """Protocol 2.4."""
    message = client.messages.create(model=CHAT, max_tokens=3, messages=HELLO)

    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3


def test_asking_for_more_tokens_than_there_is_room_for_is_no_error(
    client: anthropic.Anthropic, door: Daemon
) -> None:
    """Ours: agents ask every model for 32000, in every dialect."""
    with client.messages.stream(model=CHAT, max_tokens=32_000, messages=HELLO) as stream:
        message = stream.get_final_message()
    with door.sdk() as sdk:
        asked: Any = [{"role": "user", "content": "Hello"}]
        chat = sdk.chat.completions.create(model=CHAT, max_tokens=32_000, messages=asked)
        response = sdk.responses.create(model=CHAT, max_output_tokens=32_000, input="Hello")

    assert text_of(message) == GREETING
    assert chat.choices[0].message.content == GREETING
    assert response.output_text == GREETING


def test_structured_output_is_json(client: anthropic.Anthropic) -> None:
    """Issue: `output_config.format`."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "maxLength": 40}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    message = client.messages.create(
        model=CHAT,
        max_tokens=300,
        messages=HELLO,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )

    assert list(json.loads(text_of(message))) == ["answer"]


def test_prefill_is_continued(client: anthropic.Anthropic) -> None:
    """Protocol 10.1: the last message is the beginning of the answer, and is not repeated."""
    message = client.messages.create(
        model=CHAT,
        max_tokens=64,
        messages=[*HELLO, {"role": "assistant", "content": "Hello! How can"}],
    )

    assert text_of(message) == " I help you today?"


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": HELLO},
        {"messages": HELLO, "system": "You are a helpful assistant."},
        {"messages": HELLO, "system": [{"type": "text", "text": "One."}]},
        {"messages": [ASK_WEATHER], "tools": [WEATHER]},
        {"messages": CALLED, "tools": [WEATHER]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                {"role": "assistant", "content": "Hi"},
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
            ]
        },
        {"messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
    ids=["plain", "system", "system blocks", "tools", "tool result", "turns", "thinking"],
)
def test_count_is_what_the_engine_then_reports(
    client: anthropic.Anthropic, asked: dict[str, Any]
) -> None:
    """Issue: counting equals usage, exactly, for the built-in model."""
    counted = client.messages.count_tokens(model=CHAT, **asked)
    message = client.messages.create(model=CHAT, max_tokens=1100, **asked)

    usage = message.usage
    assert counted.input_tokens == (
        usage.input_tokens
        + (usage.cache_read_input_tokens or 0)
        + (usage.cache_creation_input_tokens or 0)
    )


def test_what_the_model_cannot_do_is_said_at_once(client: anthropic.Anthropic) -> None:
    """Issue: images to a text model are a 400, not an answer without them."""
    picture: anthropic.types.ImageBlockParam = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
    }

    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(
            model=CHAT, max_tokens=9, messages=[{"role": "user", "content": [picture]}]
        )


def test_a_prompt_over_the_context_says_so_in_words_that_agents_know(
    client: anthropic.Anthropic,
) -> None:
    """Protocol 1.4: Claude Code matches this sentence and compacts."""
    with pytest.raises(
        anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 4096 maximum"
    ):
        client.messages.create(
            model=CHAT, max_tokens=9, messages=[{"role": "user", "content": "hello " * 9000}]
        )


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b'{"model": "nope", "max_tokens": 1, "messages": []}', 404, "not_found_error"),
        (b"{nope", 400, "invalid_request_error"),
        (b'{"model": "cortex/tiny", "messages": []}', 400, "invalid_request_error"),
        (
            b'{"model": "cortex/tiny", "max_tokens": 1, "messages":'
            b' [{"role": "user", "content": [{"type": "mystery"}]}]}',
            400,
            "invalid_request_error",
        ),
    ],
)
def test_errors_are_in_the_dialect(door: Daemon, body: bytes, status: int, kind: str) -> None:
    """Protocol 1.4."""
    answer = httpx.post(f"{door.url}/v1/messages", content=body, timeout=30)

    told = answer.json()
    assert answer.status_code == status
    assert told["type"] == "error"
    assert told["error"]["type"] == kind
    assert told["request_id"] == answer.headers["request-id"]


def test_a_caller_that_leaves_stops_the_engine(
    client: anthropic.Anthropic, neuron: NeuronProcess
) -> None:
    """Issue: cancellation reaches the engine through a translated stream as well."""
    story: list[anthropic.types.MessageParam] = [
        {"role": "user", "content": "Tell me a long story"}
    ]
    stream = client.messages.create(model=CHAT, max_tokens=3000, messages=story, stream=True)
    next(iter(stream))
    stream.close()

    until(lambda: neuron.model(CHAT)["in_flight"] == 0)
    until(lambda: all(n == 0 for n in neuron.series("vllm:num_requests_running").values()))
