"""LoRA adapters for `cortex/tiny`, written by hand."""

import json
import pathlib

import pytest

from cortex_core.ids import ModelId
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT


def write_adapter(folder: pathlib.Path, *, seed: int | None = None, rank: int = 4) -> str:
    """Write an adapter of all attention projections, and return where it is.

    Args:
        folder: to be made.
        seed: of its numbers, which are large enough to change every answer; `None` makes all of
            them 0, with which the answers are those of the base.
        rank: of its matrices.
    """
    config = json.loads((BUILTIN[ModelId(CHAT)].path / "config.json").read_bytes())
    hidden, head = config["hidden_size"], config["head_dim"]
    outputs = {
        "q_proj": config["num_attention_heads"] * head,
        "v_proj": config["num_key_value_heads"] * head,
    }
    numpy = pytest.importorskip("numpy")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    random = numpy.random.default_rng(seed or 0)
    size = 0.0 if seed is None else 1.0
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, output in outputs.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("A", (rank, hidden)), ("B", (output, rank))):
                numbers = random.standard_normal(shape, dtype=numpy.float32) * size
                tensors[f"{prefix}.lora_{part}.weight"] = numbers
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": rank,
                "lora_alpha": 2 * rank,
                "target_modules": list(outputs),
                "bias": "none",
            }
        )
    )
    return str(folder)
