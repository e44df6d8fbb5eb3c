"""Adapters through a gateway, on the real engine of `cortex/tiny`: nobody loads anything by hand."""

import pathlib
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.adapters import write_adapter
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway, until, victims

pytestmark = pytest.mark.timeout(600)

ONE, TWO, ZERO, WIDE = "org/one", "org/two", "org/zero", "org/wide"

BASE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
engine = {{ enable_lora = true, max_loras = 2, max_lora_rank = 8 }}
"""

ADAPTER = """
[[models]]
id = "{name}"
harness = "vllm"
base = "{base}"
adapter = "{path}"
"""


@pytest.fixture
def door(own_neuron: NeuronProcess, tmp_path: pathlib.Path) -> Iterator[Daemon]:
    """A gateway over a neuron that has nothing, with four adapters in its catalogue."""
    paths = {
        ONE: write_adapter(tmp_path / "one", seed=1),
        TWO: write_adapter(tmp_path / "two", seed=2),
        ZERO: write_adapter(tmp_path / "zero"),
        WIDE: write_adapter(tmp_path / "wide", seed=3, rank=16),
    }
    catalogue = BASE + "".join(
        ADAPTER.format(name=name, base=CHAT, path=path) for name, path in paths.items()
    )
    eviction = "[eviction]\nmin_residency_s = 0\n"
    with gateway(tmp_path, catalogue, more=eviction, own=own_neuron.url) as daemon:
        yield daemon


def say(client: openai.OpenAI, model: str) -> str:
    """Return what a model says to the same question as all others."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=12,
        temperature=0,
    )
    assert answer.model == model
    return answer.choices[0].message.content or ""


def test_adapters_come_with_their_base_and_give_way_to_each_other(
    own_neuron: NeuronProcess, door: Daemon
) -> None:
    """Issue: neither is loaded; both come, the answer is the adapter's; then one too many."""

    def there() -> set[str]:
        models = own_neuron.http.get("/models").json()
        return {model["id"] for model in models if model["status"] == "loaded"}

    asked = {"model": ONE, "messages": [{"role": "user", "content": "Hello"}]}
    with door.sdk() as client:
        counted = httpx.post(f"{door.url}/v1/messages/count_tokens", json=asked, timeout=120)
        cold = there()
        said = {ONE: say(client, ONE)}
        with_base = there()
        said |= {model: say(client, model) for model in (TWO, CHAT)}
        both = there()
        until(lambda: victims(door, ZERO) == {ONE})
        said[ZERO] = say(client, ZERO)
        until(lambda: there() == {CHAT, TWO, ZERO})
        again = say(client, ONE)
        with pytest.raises(openai.APIStatusError) as refused:
            say(client, WIDE)
        after = say(client, CHAT)
        listed = {entry.id: entry for entry in client.models.list()}

    assert (counted.status_code, cold) == (200, set()), counted.text
    assert (with_base, both) == ({CHAT, ONE}, {CHAT, ONE, TWO})
    assert len({said[CHAT], said[ONE], said[TWO]}) == 3
    assert said[ZERO] == said[CHAT] == after
    assert again == said[ONE]
    assert "rank 16 is greater than max_lora_rank 8" in str(refused.value)
    assert listed[ONE].model_dump()["parent"] == CHAT
    assert len(own_neuron.engine_processes()) == 1
    for model in (WIDE, CHAT):
        assert own_neuron.unload(model).status_code == 200
    assert own_neuron.http.get("/models").json() == []
