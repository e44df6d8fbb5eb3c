"""What a model's own files say of it."""

import json
import pathlib

import pytest

from cortex_core.knowledge import KvShape
from neuron.weights.description import (
    Description,
    has_chat_template,
    kv_shape,
    longest_context,
    read_description,
)

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}


def described(**fields: object) -> Description:
    return Description(config={**LLAMA, **fields}, files=frozenset({"config.json"}))


def test_files_are_read_and_broken_ones_say_nothing(tmp_path: pathlib.Path) -> None:
    """Ours: never a failure."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)

    model = read_description(tmp_path)

    assert model.architectures == ("LlamaForCausalLM",)
    assert model.generation == {"temperature": 0.6}
    assert model.tokenizer == {}
    assert read_description(tmp_path / "none") == Description()


def test_cache_of_one_token() -> None:
    """Ours, measured against vLLM: keys and values, of the key-value heads, in every layer."""
    shape = kv_shape(described(), 2)
    latent = kv_shape(described(model_type="deepseek_v3", kv_lora_rank=16, qk_rope_head_dim=4), 2)

    assert shape == KvShape(heads=1, head_bytes=128, full_layers=2)
    assert shape.device_bytes(1) == 256
    assert latent is not None
    # Each device keeps all of it.
    assert [latent.device_bytes(1, parallel) for parallel in (1, 2)] == [2 * (16 + 4) * 2] * 2
    assert kv_shape(Description(), 2) is None


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"sliding_window": 512, "use_sliding_window": False}, (2, 0, True)),
        ({"sliding_window": None}, (2, 0, True)),
        ({"sliding_window": 512}, (2, 0, False)),
        ({"sliding_window": 512, "model_type": "mistral"}, (0, 2, True)),
        (
            {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]},
            (1, 1, True),
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, (1, 0, False)),
        ({"model_type": "jamba"}, (2, 0, False)),
    ],
)
def test_layers_are_told_apart_by_what_they_keep(
    fields: dict[str, object], layers: tuple[int, int, bool]
) -> None:
    """Ours: what is not plain is a guess, and refuses nothing."""
    shape = kv_shape(described(**fields), 2)

    assert shape is not None
    assert (shape.full_layers, shape.window_layers, shape.is_exact) == layers


def test_model_with_parts_is_described_by_its_text() -> None:
    """transformers: `text_config` of multimodal models."""
    whole = Description(config={"architectures": ["SeeingModel"], "text_config": LLAMA})

    assert whole.architectures == ("SeeingModel",)
    assert whole.number("num_hidden_layers") == 2
    assert longest_context(whole) == 4096


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({}, 4096),
        ({"model_max_length": 8192}, 8192),
        ({"max_seq_len": 1000}, 1000),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 16384),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}}, 8192),
        ({"max_position_embeddings": True}, None),
    ],
)
def test_longest_context_is_what_vllm_derives(
    fields: dict[str, object], length: int | None
) -> None:
    """vLLM 0.32, `_get_and_verify_max_len`."""
    assert longest_context(described(**fields)) == length


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": ["a"], "factor": 2.0},
        {"type": {}, "factor": 2.0},
        {"type": "x", "factor": 10**400},
    ],
)
def test_positions_that_are_scaled_in_no_way_there_is_raise_nothing(scaling: object) -> None:
    """Ours: files may come from anybody."""
    longest_context(described(rope_scaling=scaling))
    longest_context(described(rope_scaling={"type": "x", "factor": float("inf")}))


@pytest.mark.parametrize(
    ("tokenizer", "files", "has"),
    [
        ({"chat_template": "{{ m }}"}, {"config.json"}, True),
        ({"x": 1}, {"chat_template.jinja"}, True),
        ({"x": 1}, {"config.json"}, False),
        ({}, {"tekken.json"}, None),
        ({}, set(), None),
    ],
)
def test_chat_template_is_looked_for_where_it_may_be(
    tokenizer: dict[str, object], files: set[str], has: bool | None
) -> None:
    """transformers: within the tokenizer's configuration, or a file of its own."""
    model = Description(tokenizer=tokenizer, files=frozenset(files))

    assert has_chat_template(model) is has
