"""A tiny model that sees: Idefics 3 of drawn weights, with the tokenizer of the built-in model.

Its words mean nothing, but they depend on the picture. Of the families that vLLM 0.32 knows it is
one of the few that run without torchvision, which the CPU build has not.
"""

import json
import pathlib
import shutil
from typing import Any

from neuron.models import BUILTIN

SIDE = 28
PATCH = 14
_SCALE = 2
_SEEN = 32
_SPOKEN = 64
_LAYERS = 2
_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")

_TEXT: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": _SPOKEN,
    "intermediate_size": 2 * _SPOKEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": _SPOKEN // 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_VISION: dict[str, object] = {
    "model_type": "idefics3_vision",
    "hidden_size": _SEEN,
    "intermediate_size": 2 * _SEEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_seer(folder: pathlib.Path) -> pathlib.Path:
    """Make the model from a fixed seed and return it."""
    (source,) = [model.path for name, model in BUILTIN.items() if name.endswith("/tiny")]
    folder.mkdir()
    shutil.copy(source / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    first = _write_tokenizer(source, folder)
    rows = first + 64
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "dtype": "float32",
        "image_token_id": first + _TOKENS.index("<image>"),
        "pad_token_id": 0,
        "scale_factor": _SCALE,
        "tie_word_embeddings": False,
        "text_config": {**_TEXT, "vocab_size": rows},
        "vision_config": _VISION,
    }
    processor = {
        "processor_class": "Idefics3Processor",
        "image_seq_len": (SIDE // PATCH // _SCALE) ** 2,
    }
    pictures = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_image_splitting": False,
        "size": {"longest_edge": SIDE},
        "max_image_size": {"longest_edge": SIDE},
    }
    for name, value in (
        ("config.json", config),
        ("processor_config.json", processor),
        ("preprocessor_config.json", pictures),
    ):
        (folder / name).write_text(json.dumps(value))
    _write_weights(folder, rows)
    return folder


def _write_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> int:
    """Add the tokens of pictures, and return the first one's id."""
    tokenizer = json.loads((source / "tokenizer.json").read_bytes())
    taken = [token["id"] for token in tokenizer["added_tokens"]]
    first = int(max([*taken, *tokenizer["model"]["vocab"].values()])) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {"id": first + number, "content": content, "special": True, **plain}
        for number, content in enumerate(_TOKENS)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return first


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    inner = 2 * _SEEN
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (_SEEN, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (_SEEN,),
        "embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2, _SEEN),
        "post_layernorm.weight": (_SEEN,),
        "post_layernorm.bias": (_SEEN,),
    }
    for layer in range(_LAYERS):
        square = {f"self_attn.{name}_proj": (_SEEN, _SEEN) for name in ("q", "k", "v", "out")}
        linear = square | {"mlp.fc1": (inner, _SEEN), "mlp.fc2": (_SEEN, inner)}
        for name, shape in linear.items():
            shapes[f"encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layers.{layer}.{name}.bias"] = shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"encoder.layers.{layer}.{name}.weight"] = (_SEEN,)
            shapes[f"encoder.layers.{layer}.{name}.bias"] = (_SEEN,)
    return shapes


def _text_shapes(rows: int) -> dict[str, tuple[int, ...]]:
    inner = 2 * _SPOKEN
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (rows, _SPOKEN),
        "norm.weight": (_SPOKEN,),
    }
    for layer in range(_LAYERS):
        square = {f"self_attn.{name}_proj": (_SPOKEN, _SPOKEN) for name in ("q", "k", "v", "o")}
        linear = square | {
            "mlp.gate_proj": (inner, _SPOKEN),
            "mlp.up_proj": (inner, _SPOKEN),
            "mlp.down_proj": (_SPOKEN, inner),
        }
        for name, shape in linear.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"layers.{layer}.{name}.weight"] = (_SPOKEN,)
    return shapes


def _write_weights(folder: pathlib.Path, rows: int) -> None:
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(7)
    shapes = {f"model.vision_model.{name}": shape for name, shape in _vision_shapes().items()}
    shapes |= {f"model.text_model.{name}": shape for name, shape in _text_shapes(rows).items()}
    shapes["model.connector.modality_projection.proj.weight"] = (_SPOKEN, _SEEN * _SCALE**2)
    shapes["lm_head.weight"] = (rows, _SPOKEN)
    weights: dict[str, Any] = {
        name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
