"""Two models of the real engine on one node that has room for one."""

import concurrent.futures
import pathlib
from collections.abc import Iterator

import openai
import pytest

from neuron.engines import processes
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

ROUNDS, CALLERS = 3, 4

GROWTH_BYTES = 24 << 20
"""What the neuron may keep of the swaps after the first round."""


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


def engines(neuron: Daemon) -> int:
    """Return how many processes the neuron has below it: engines and what starts them."""
    return len(processes.family([neuron.process.pid])) - 1


def test_both_models_are_served_in_turns(tmp_path: pathlib.Path, small: Daemon) -> None:
    """Issue: A, B, A, B under load, all answered, memory is back, times are told."""
    with (
        gateway(tmp_path, CATALOGUE, more=EVICTION, small=small.url) as door,
        door.sdk() as client,
        concurrent.futures.ThreadPoolExecutor(2 * CALLERS) as pool,
    ):
        sizes, counts = [], []
        for _ in range(ROUNDS):
            texts = [pool.submit(chat, client) for _ in range(CALLERS)]
            vectors = [pool.submit(embed, client) for _ in range(CALLERS)]
            assert {job.result(timeout=120) for job in texts} == {
                "Hello! How can I help you today?"
            }
            assert len({job.result(timeout=120) for job in vectors}) == 1
            for model in (CHAT, EMBED):
                door.post(f"/admin/models/{model}/unload")
            sizes.append(small.rss_bytes())
            counts.append(engines(small))
        decided = door.get("/admin/decisions?limit=1000").json()["decisions"]

    assert sum("model unloaded" in line for line in small.log) >= 2 * ROUNDS
    # The first round imports what the engine needs; after it everything is back where it was.
    assert sizes[-1] - sizes[0] < GROWTH_BYTES
    assert counts[-1] == counts[0]
    ended = [(one["kind"], one["took_s"]) for one in decided if "took_s" in one]
    assert {kind for kind, _ in ended} >= {"load", "evict"}
    assert all(took_s > 0 for _, took_s in ended)
