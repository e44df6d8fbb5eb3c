"""Tokens of models that are not loaded are told by a node, and nothing is loaded for it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fleet.daemons import Daemon, gateway, simulated_neuron

pytestmark = pytest.mark.timeout(120)

HELLO = [{"role": "user", "content": "Hello, how many tokens is this?"}]
CATALOGUE = """
[[models]]
id = "sim/one"
harness = "simulated"
vram_mb = 8000
[models.engine]
max_model_len = 1234
[[models]]
id = "org/real"
harness = "vllm"
vram_mb = 8000
[aliases]
"one" = "sim/one"
"""
PATHS: dict[str, dict[str, Any]] = {
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/v1/responses/input_tokens": {"input": HELLO[0]["content"]},
    "/tokenize": {"prompt": HELLO[0]["content"]},
    "/detokenize": {"tokens": []},
}


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with simulated_neuron(tmp_path_factory.mktemp("n")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def door(neuron: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, sim=neuron.url) as daemon:
        yield daemon


def ask(door: Daemon, path: str, model: str, **more: str) -> httpx.Response:
    body = {"model": model, **PATHS[path]}
    return httpx.post(door.url + path, json=body, headers=more, timeout=60)


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("model", ["sim/one", "one"])
def test_tokens_are_told_without_a_load(
    door: Daemon, neuron: Daemon, path: str, model: str
) -> None:
    """Issue: count_tokens and context checks need no GPU; also not a caller who may wait."""
    answer = ask(door, path, model)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-cortex-node"] == "sim"
    assert "x-cortex-cold-start" not in answer.headers
    assert httpx.get(neuron.url + "/models").json() == []


def test_engine_options_of_the_catalogue_reach_the_node(door: Daemon) -> None:
    """Ours: the answer is that of the engine that would be loaded."""
    assert ask(door, "/tokenize", "sim/one").json()["max_model_len"] == 1234


def test_wrong_request_is_refused_without_a_load(door: Daemon, neuron: Daemon) -> None:
    """Ours: the node's own refusal, in the caller's dialect."""
    answer = httpx.post(f"{door.url}/tokenize", json={"model": "sim/one", "prompt": 7}, timeout=60)

    assert answer.status_code == 400, answer.text
    assert httpx.get(neuron.url + "/models").json() == []


def test_model_whose_files_nobody_has_is_searched_for_as_ever(door: Daemon) -> None:
    """Ours: then a load is what is needed."""
    answer = ask(door, "/tokenize", "org/real", **{"x-cortex-cold-ok": "false"})

    assert answer.status_code == 503, answer.text
