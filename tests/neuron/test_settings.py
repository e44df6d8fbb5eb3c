"""`neuron.toml`: the contract's example, the overlay, and what stops the start."""

import pathlib

import pytest

from cortex_core.errors import SettingsError
from neuron.settings import NeuronSettings, load_settings

EXAMPLE = """
port = 13131
[[harnesses]]
name = "vllm"
[[harnesses]]
name = "simulated"
[harness.vllm]
hf_cache = "/var/lib/neuron/hf-cache"
[[default_models]]
model_id = "Qwen/Qwen3-0.6B"
harness = "vllm"
devices = [0]
[[devices]]
index = 0
name = "SIM-24"
vram_total_mb = 24576
compute_capability = "8.9"
[harness.simulated]
load_s = 2.0
load_mb_per_s = 1000
wake_s = 0.5
prefill_tok_per_s = 4000
decode_tok_per_s = 50
max_in_flight = 8
context = 4096
vram_mb = { "org/model-a" = 16000 }
[harness.simulated.faults."org/model-a"]
fail_to_load = 2
die_after_tokens = 100
hang = true
hang_load = true
slow = 2.0
"""


def _load(tmp_path: pathlib.Path, text: str, **environ: str) -> NeuronSettings:
    path = tmp_path / "neuron.toml"
    path.write_text(text)
    return load_settings(path, environ)


def test_example_of_the_contract_is_read(tmp_path: pathlib.Path) -> None:
    """Given: the names in neuron.toml."""
    settings = _load(tmp_path, EXAMPLE)

    assert settings.port == 13131
    assert [entry.name for entry in settings.harnesses] == ["vllm", "simulated"]
    assert settings.harness.vllm.hf_cache == "/var/lib/neuron/hf-cache"
    assert settings.default_models[0].devices == (0,)
    assert settings.devices[0].vram_total_mb == 24576
    assert settings.harness.simulated.faults["org/model-a"].fail_to_load == 2


def test_defaults_need_no_file() -> None:
    """Given: port 13131; ours: the real engine."""
    settings = load_settings(None, {})

    assert settings.port == 13131
    assert [entry.name for entry in settings.harnesses] == ["vllm"]


def test_environment_lies_over_the_file(tmp_path: pathlib.Path) -> None:
    """Given: `NEURON_` with `__` between levels."""
    settings = _load(
        tmp_path, EXAMPLE, NEURON_PORT="0", NEURON_HARNESS__VLLM__HF_CACHE="/elsewhere", OTHER="x"
    )

    assert (settings.port, settings.harness.vllm.hf_cache) == (0, "/elsewhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot: unknown key; did you mean 'port'?"),
        ("port = 70000", "port"),
        ("port = '1'", "port"),
        ("[[harnesses]]\nname = 'nope'", "harnesses[0].name: 'nope' is no harness"),
        ("[[harnesses]]\nname = 'vllm'\n[[harnesses]]\nname = 'vllm'", "harnesses[1].name"),
        ("[harness.simulated]\ndecode_tok_per_s = 0", "harness.simulated.decode_tok_per_s"),
        ("[harness.simulated.faults.x]\nnope = 1", "nope"),
        ("[harness.nope]\nx = 1", "harness.nope"),
        (
            "[[default_models]]\nmodel_id = 'a'\nharness = 'simulated'",
            "default_models[0].harness: 'simulated' is not under [[harnesses]]",
        ),
        ("[[default_models]]\nharness = 'vllm'", "default_models[0].model_id"),
        (
            "[[devices]]\nindex = 0\nname = 'a'\nvram_total_mb = 1\n"
            "[[devices]]\nindex = 0\nname = 'b'\nvram_total_mb = 1",
            "devices[1].index: 0 is there twice",
        ),
        ("[harness.vllm]\nmodel_dirs = ['/a', 'b']", "harness.vllm.model_dirs[1]: 'b' is no"),
        ("[harness.vllm]\nendpoint = 'hub'", "harness.vllm.endpoint: 'hub' is no URL"),
        ("port = ", "not valid TOML"),
    ],
)
def test_mistake_stops_the_start_and_is_named(
    tmp_path: pathlib.Path, text: str, words: str
) -> None:
    """Given: file, TOML path, what was wrong."""
    with pytest.raises(SettingsError) as raised:
        _load(tmp_path, text)

    assert str(tmp_path / "neuron.toml") in raised.value.message
    assert words in raised.value.message
