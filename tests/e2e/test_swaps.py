"""Two models of the real engine on one node that has room for one."""

import concurrent.futures
import pathlib
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.fleet.daemons import Daemon, gateway, started

pytestmark = pytest.mark.timeout(300)

NEURON = """
host = "127.0.0.1"
port = 0
[[harnesses]]
name = "vllm"
[[devices]]
index = 0
name = "CPU"
vram_total_mb = 1500
"""

CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "vllm"\nvram_mb = 1000\n' for model in (CHAT, EMBED)
)

EVICTION = "[eviction]\nmin_residency_s = 1\n"

ROUNDS, CALLERS = 2, 4


@pytest.fixture
def small(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A neuron that holds one of the two."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tmp_path / "neuron.toml"
    config.write_text(NEURON)
    with started("neuron", config, r"ready: http://(\S+)") as daemon:
        yield daemon


def chat(client: openai.OpenAI) -> str:
    asked: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "Hello"}
    ]
    return (
        client.chat.completions.create(model=CHAT, messages=asked).choices[0].message.content or ""
    )


def embed(client: openai.OpenAI) -> int:
    return len(client.embeddings.create(model=EMBED, input="a cat").data[0].embedding)


def test_both_models_are_served_in_turns(tmp_path: pathlib.Path, small: Daemon) -> None:
    """Issue: A, B, A, B under concurrent load, every request answered."""
    with (
        gateway(tmp_path, CATALOGUE, more=EVICTION, small=small.url) as door,
        door.sdk() as client,
        concurrent.futures.ThreadPoolExecutor(2 * CALLERS) as pool,
    ):
        for _ in range(ROUNDS):
            texts = [pool.submit(chat, client) for _ in range(CALLERS)]
            vectors = [pool.submit(embed, client) for _ in range(CALLERS)]
            assert {job.result(timeout=120) for job in texts} == {
                "Hello! How can I help you today?"
            }
            assert len({job.result(timeout=120) for job in vectors}) == 1
        held = [model["status"] for model in small.get("/models").json()]

    assert held == ["loaded"]
    assert sum("model unloaded" in line for line in small.log) >= ROUNDS
