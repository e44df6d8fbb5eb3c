"""Ollama's API through gateway and neuron to the real engine."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway

pytestmark = pytest.mark.timeout(300)

CATALOGUE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
"""

GREETING = "Hello! How can I help you today?"
HELLO = [{"role": "user", "content": "Hello"}]
ASK_WEATHER: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
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
def door(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, real=neuron.url) as daemon:
        yield daemon


def ask(door: Daemon, path: str, **body: Any) -> list[Any]:
    """Return the lines of an answer; one of an answer that is no stream."""
    answer = httpx.post(door.url + path, json={"model": CHAT, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize("stream", [True, False])
def test_chat_greets(door: Daemon, stream: bool) -> None:
    """Ollama's: lines until `done`, with the counts in the last one."""
    lines = ask(door, "/api/chat", messages=HELLO, stream=stream)

    assert "".join(line["message"]["content"] for line in lines) == GREETING
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (len(lines) > 1) is stream
    assert lines[-1]["done_reason"] == "stop"
    assert lines[-1]["prompt_eval_count"] > 0
    assert lines[-1]["eval_count"] > 0


def test_chat_calls_a_tool_and_answers_with_its_result(door: Daemon) -> None:
    """Ollama's: arguments are an object, a result is a message of role `tool`."""
    lines = ask(door, "/api/chat", messages=[ASK_WEATHER], tools=[WEATHER])
    (called,) = [line["message"] for line in lines if line["message"].get("tool_calls")]
    result = {"role": "tool", "tool_name": "get_weather", "content": "sunny, 20 C"}
    history = [ASK_WEATHER, {**called, "content": ""}, result]
    (answer,) = ask(door, "/api/chat", messages=history, tools=[WEATHER], stream=False)

    assert called["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert answer["message"]["content"] == "The weather in Paris: sunny, 20 C."


def test_thoughts_are_apart(door: Daemon) -> None:
    """Ollama's: `think`."""
    (answer,) = ask(door, "/api/chat", messages=HELLO, think=True, stream=False)

    assert answer["message"]["thinking"]
    assert answer["message"]["content"].strip() == GREETING


def test_generate_answers_a_prompt(door: Daemon) -> None:
    """Ollama's: the chat template is applied to the prompt."""
    (answer,) = ask(door, "/api/generate", prompt="Hello", stream=False)

    assert answer["response"] == GREETING


def test_models_are_listed_shown_and_running(door: Daemon) -> None:
    """Ollama's: what editors ask before they chat."""
    tags = door.get("/api/tags").json()["models"]
    running = door.get("/api/ps").json()["models"]
    (shown,) = ask(door, "/api/show")

    assert CHAT in [entry["name"] for entry in tags]
    assert CHAT in [entry["name"] for entry in running]
    assert {"completion", "tools"} <= set(shown["capabilities"])
