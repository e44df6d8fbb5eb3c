"""OpenAI's official SDK speaking Responses, through gateway and neuron to the real engine."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway, until

pytestmark = pytest.mark.timeout(300)

CATALOGUE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
"""

GREETING = "Hello! How can I help you today?"
ASK_WEATHER = "What is the weather in Paris?"
WEATHER: openai.types.responses.FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "City name"}},
        "required": ["city"],
    },
    "strict": None,
}


@pytest.fixture(scope="module")
def door(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, real=neuron.url) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(door: Daemon) -> Iterator[openai.OpenAI]:
    with door.sdk() as sdk:
        yield sdk


def final(client: openai.OpenAI, **asked: Any) -> openai.types.responses.Response:
    """Ask with a stream and return the response at its end."""
    numbers = []
    last: Any = None
    for last in client.responses.create(model=CHAT, stream=True, **asked):
        numbers.append(last.sequence_number)
    assert numbers == list(range(len(numbers)))
    response: openai.types.responses.Response = last.response
    return response


def whole_of(client: openai.OpenAI) -> Callable[..., openai.types.responses.Response]:
    """Return what asks without a stream."""
    return functools.partial(client.responses.create, model=CHAT)


def test_response_is_the_same_whole_and_as_a_stream(client: openai.OpenAI) -> None:
    """Issue: JSON and SSE; usage never zero."""
    whole = client.responses.create(model=CHAT, input="Hello")
    streamed = final(client, input="Hello")

    for response in (whole, streamed):
        assert response.output_text == GREETING
        assert response.status == "completed"
        assert response.usage is not None
        assert response.usage.output_tokens > 0
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.input_tokens == streamed.usage.input_tokens > 0


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "name": "get_weather"}]
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_function_is_called_and_its_output_answered(
    client: openai.OpenAI, choice: Any, is_stream: bool
) -> None:
    """Issue: function calls; the turn after them goes on from what is kept."""
    asked: dict[str, Any] = {"input": ASK_WEATHER, "tools": [WEATHER], "tool_choice": choice}
    ask = functools.partial(final, client) if is_stream else whole_of(client)
    response = ask(**asked)
    (call,) = [item for item in response.output if item.type == "function_call"]

    answered = client.responses.create(
        model=CHAT,
        previous_response_id=response.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 20 C"}],
        tools=[WEATHER],
    )

    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert answered.output_text == "The weather in Paris: sunny, 20 C."


def test_thoughts_are_an_item_of_their_own_and_can_be_sealed(client: openai.OpenAI) -> None:
    """Issue: reasoning items with encrypted content that we can open again."""
    asked: dict[str, Any] = {
        "input": "Hello",
        "reasoning": {"effort": "medium"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }
    response = final(client, **asked)
    thought, message = response.output
    again = client.responses.create(
        model=CHAT,
        store=False,
        input=[
            {"role": "user", "content": "Hello"},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "encrypted_content": getattr(thought, "encrypted_content", None),
            },
            {"role": "assistant", "content": GREETING},
            {"role": "user", "content": "Hello"},
        ],
    )

    assert thought.type == "reasoning"
    assert thought.content
    assert thought.content[0].text.strip()
    assert message.type == "message"
    assert thought.content[0].text.strip() not in response.output_text
    assert again.status == "completed"


def test_summary_of_thoughts_is_streamed_when_it_is_asked_for(client: openai.OpenAI) -> None:
    """Issue: reasoning items with summary."""
    events = list(
        client.responses.create(
            model=CHAT,
            input="Hello",
            stream=True,
            reasoning={"effort": "medium", "summary": "auto"},
        )
    )

    kinds = [event.type for event in events]
    assert "response.reasoning_summary_text.delta" in kinds
    assert kinds.index("response.reasoning_summary_part.added") < kinds.index(
        "response.reasoning_summary_part.done"
    )
    assert kinds[-1] == "response.completed"


def test_structured_output_is_parsed_by_the_sdk(client: openai.OpenAI) -> None:
    """Issue: structured output."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "maxLength": 40}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}
    response = client.responses.create(model=CHAT, input="Hello", text=form, max_output_tokens=300)

    assert list(json.loads(response.output_text)) == ["answer"]


def test_cut_by_the_limit_is_incomplete(client: openai.OpenAI) -> None:
    """Protocol 8.2."""
    response = final(client, input="Hello", max_output_tokens=3)

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_conversation_remembers(client: openai.OpenAI) -> None:
    """Issue: `conversation`."""
    conversation = client.conversations.create()
    client.responses.create(model=CHAT, input="Hello", conversation=conversation.id)
    client.responses.create(model=CHAT, input="Hello", conversation=conversation.id)

    items = client.conversations.items.list(conversation.id, order="asc").data
    assert [getattr(item, "role", None) for item in items] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_background_response_is_made_and_can_be_polled(client: openai.OpenAI) -> None:
    """Issue: background mode."""
    response = client.responses.create(model=CHAT, input="Hello", background=True)
    until(lambda: client.responses.retrieve(response.id).status == "completed")

    assert response.status in ("queued", "in_progress")
    assert client.responses.retrieve(response.id).output_text == GREETING


def test_cancel_reaches_the_engine(client: openai.OpenAI, neuron: NeuronProcess) -> None:
    """Issue: cancel; cancellation reaches the engine."""
    response = client.responses.create(
        model=CHAT, input="Tell me a long story", background=True, max_output_tokens=3000
    )
    until(lambda: neuron.model(CHAT)["in_flight"] == 1)
    cancelled = client.responses.cancel(response.id)

    assert cancelled.status == "cancelled"
    until(lambda: all(n == 0 for n in neuron.series("vllm:num_requests_running").values()))


def test_input_tokens_are_what_the_engine_then_reports(client: openai.OpenAI) -> None:
    """Issue: `input_tokens` counting."""
    asked: dict[str, Any] = {
        "input": ASK_WEATHER,
        "instructions": "Be brief.",
        "tools": [WEATHER],
    }
    counted = client.responses.input_tokens.count(model=CHAT, **asked)
    response = client.responses.create(model=CHAT, **asked)

    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens


def test_unknown_previous_response_is_refused(client: openai.OpenAI) -> None:
    """Protocol 8.1."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=CHAT, input="Hello", previous_response_id="resp_none")

    assert caught.value.code == "previous_response_not_found"


def test_namespaces_and_hosted_tools_are_what_codex_expects(client: openai.OpenAI) -> None:
    """Protocol 10.3: names are split again; hosted tools are dropped, and named in a header."""
    tools: Any = [
        {"type": "namespace", "name": "city", "tools": [WEATHER]},
        {"type": "web_search"},
    ]
    raw = client.responses.with_raw_response.create(
        model=CHAT, input=ASK_WEATHER, tools=tools, tool_choice="required"
    )

    (call,) = raw.parse().output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert getattr(call, "namespace", None) == "city"
    assert raw.headers["x-cortex-ignored"] == "tools.1"
