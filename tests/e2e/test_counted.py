"""What is counted of the real engine: tokens of streams, told to those who ask, and its series."""

import json
import pathlib
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from cortex_core.sse import SseDecoder
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway, until
from tests.fleet.prometheus import (
    complaints,
    metrics_of,
    needs_prometheus,
    needs_promtool,
    prometheus,
)

pytestmark = pytest.mark.timeout(300)

CATALOGUE = f'[[models]]\nid = "{CHAT}"\nharness = "vllm"\n'

ASKED: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 6},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 6},
}
OPENAI = ["/v1/chat/completions", "/v1/completions"]

TOLD = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def door(
    neuron: NeuronProcess,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Daemon]:
    """A gateway that writes its log for programs."""
    told = f'workers = {request.param}\nlog_format = "json"\n'
    folder = tmp_path_factory.mktemp("g")
    with gateway(folder, CATALOGUE, told=told, real=neuron.url) as daemon:
        yield daemon


class Heard:
    """What came of one request: its events, its log line, and what it added to the counters."""

    def __init__(self, door: Daemon, path: str, fields: Mapping[str, object]) -> None:
        self._door = door
        self._id = uuid.uuid4().hex
        before = self._counters()
        self.events = self._ask(path, {"model": CHAT, **ASKED[path], **fields})
        until(self._lines)
        (self.line,) = self._lines()
        until(lambda: self._counters()["requests"] > before["requests"])
        after = self._counters()
        self.counted = {name: after[name] - before[name] for name in after}

    @property
    def usages(self) -> list[dict[str, Any]]:
        """Usage that the caller was told, of whatever event."""
        return [event["usage"] for event in self.events if event.get("usage")]

    def _ask(self, path: str, body: Mapping[str, object]) -> list[dict[str, Any]]:
        headers, decoder = {"x-request-id": self._id}, SseDecoder()
        answer = httpx.post(self._door.url + path, json=body, headers=headers, timeout=120.0)
        assert answer.status_code == 200, answer.text
        data = [event.data for event in decoder.feed(answer.content)] if body.get("stream") else []
        if not data:
            return [answer.json()]
        if path in OPENAI:
            assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]

    def _lines(self) -> list[dict[str, Any]]:
        lines = [line for line in self._door.log if self._id in line and "request ended" in line]
        return [json.loads(line) for line in lines]

    def _counters(self) -> dict[str, float]:
        text = httpx.get(metrics_of(self._door), timeout=10.0).text
        names = {"requests": 0.0, "prompt_tokens": 0.0, "completion_tokens": 0.0}
        for name in names:
            found = re.findall(rf"^cortex_{name}_total{{.*}} (\S+)$", text, re.MULTILINE)
            names[name] = sum(map(float, found))
        return names


def tokens(heard: Heard) -> tuple[int, int]:
    """Return what the log line says, which must be what was counted."""
    told = (heard.line["prompt_tokens"], heard.line["completion_tokens"])
    assert heard.counted == {"requests": 1, "prompt_tokens": told[0], "completion_tokens": told[1]}
    return told


def of_whole_answer(door: Daemon, path: str) -> tuple[int, int]:
    """Return the tokens of the same request without a stream, as its caller is told."""
    (usage,) = Heard(door, path, {"temperature": 0}).usages
    first, second = ("prompt", "completion") if path in OPENAI else ("input", "output")
    return usage[f"{first}_tokens"], usage[f"{second}_tokens"]


@pytest.mark.parametrize("path", OPENAI)
def test_who_does_not_ask_is_told_nothing_and_counted(door: Daemon, path: str) -> None:
    """Issue: usage is asked of the engine even when the caller did not, and then hidden."""
    heard = Heard(door, path, {"temperature": 0, "stream": True})

    assert heard.usages == []
    assert all(len(event["choices"]) == 1 for event in heard.events)
    assert tokens(heard) == of_whole_answer(door, path)


@pytest.mark.parametrize("path", OPENAI)
def test_who_asks_is_told_once(door: Daemon, path: str) -> None:
    """OpenAI: `include_usage` adds one event with no choices, the last one."""
    heard = Heard(door, path, {"temperature": 0, "stream": True, **TOLD})

    (usage,) = heard.usages
    assert heard.events[-1]["choices"] == []
    assert heard.events[-1]["usage"] == usage
    assert all(event["choices"] for event in heard.events[:-1])
    assert tokens(heard) == (usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize("path", [path for path in ASKED if path not in OPENAI])
def test_translated_streams_are_counted(door: Daemon, path: str) -> None:
    """Contract: all dialects are counted alike."""
    heard = Heard(door, path, {"temperature": 0, "stream": True})

    assert tokens(heard) == of_whole_answer(door, path)


@needs_promtool
def test_promtool_minds_nothing_but_the_names_of_vllm(neuron: NeuronProcess) -> None:
    """Ours: vLLM's names have a colon, which Prometheus keeps for rules; they are given."""
    text = neuron.http.get("/metrics").text

    assert [one for one in complaints(text) if not one.startswith("vllm:")] == []


@needs_prometheus
def test_prometheus_scrapes_the_real_engine(
    door: Daemon, neuron: NeuronProcess, tmp_path: pathlib.Path
) -> None:
    """Issue: "a real Prometheus scraping a real run"; the engine's series are among the others."""
    Heard(door, OPENAI[0], {"stream": True})
    urls = {"gateway": metrics_of(door), "neuron": f"{neuron.url}/metrics"}
    with prometheus(tmp_path, urls) as scraper:
        scraper.until_answered(
            f"vllm:generation_tokens_total{{model='{CHAT}'}} > 0",
            "sum(vllm:time_to_first_token_seconds_count) > 0",
            f"neuron_requests_total{{model='{CHAT}', outcome='ok'}} > 0",
            f"cortex_completion_tokens_total{{model='{CHAT}'}} > 0",
            f"cortex_time_to_first_token_seconds_count{{model='{CHAT}'}} > 0",
        )
