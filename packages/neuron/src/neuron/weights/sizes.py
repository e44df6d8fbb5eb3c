"""How much memory a model needs, from what its files say of it.

Header of a safetensors file: 8 bytes, little endian, its length; then JSON with the byte range of
every tensor (huggingface.co/docs/safetensors, "Format", read November 2026).
"""

import json
import pathlib
import struct
from collections.abc import Mapping

import msgspec

_MAX_HEADER_BYTES = 100 << 20
"""The safetensors library refuses longer headers too."""

_ENGINE_OVERHEAD_BYTES = 1536 << 20
"""Activations, driver context and graphs on each device; an estimate, corrected by what loads
measure."""

_DEFAULT_CONTEXT_TOKENS = 8192
"""KV cache that is reckoned with when nobody says how long the context shall be."""


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What a `config.json` says of itself and vLLM's name tables need."""

    architectures: tuple[str, ...] = ()
    text_config: Mapping[str, object] | None = None
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    layer_types: tuple[str, ...] | None = None
    max_position_embeddings: int | None = None


def read_architecture(folder: pathlib.Path) -> Architecture:
    """Return what `config.json` says, flat; empty when it is missing or of another kind."""
    try:
        raw = (folder / "config.json").read_bytes()
        outer = msgspec.json.decode(raw, type=Architecture)
        if outer.text_config is None:
            return outer
        inner = msgspec.convert(outer.text_config, Architecture)
        return msgspec.structs.replace(inner, architectures=outer.architectures)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return Architecture()


def weights_bytes(folder: pathlib.Path) -> int | None:
    """Return the size of a folder's tensors, from the headers of its safetensors files.

    Returns:
        `None` when there are none, or one cannot be read.
    """
    files = [path for path in folder.glob("*.safetensors") if "consolidated" not in path.name]
    try:
        return sum(_tensor_bytes(path) for path in files) if files else None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def kv_bytes_per_token(model: Architecture, element_bytes: int = 2) -> int | None:
    """Return the KV cache of one token, over all layers; `None` when it cannot be told."""
    layers = model.num_hidden_layers
    if layers is None or model.num_attention_heads is None or model.hidden_size is None:
        return None
    if model.layer_types is not None:
        layers = sum(1 for kind in model.layer_types if kind != "linear_attention")
    if model.kv_lora_rank is not None:
        return layers * (model.kv_lora_rank + (model.qk_rope_head_dim or 0)) * element_bytes
    heads = model.num_key_value_heads or model.num_attention_heads
    head = model.head_dim or model.hidden_size // model.num_attention_heads
    return 2 * layers * heads * head * element_bytes


def estimate_vram_bytes(
    folder: pathlib.Path, options: Mapping[str, object], devices: int
) -> int | None:
    """Return the device memory that a model will hold, over all its devices.

    Args:
        folder: where its weights are.
        options: engine options; `kv_cache_memory_bytes` and `max_model_len` count.
        devices: how many it is spread over, at least 1.

    Returns:
        `None` when the files do not say.
    """
    weights = weights_bytes(folder)
    if weights is None:
        return None
    given = options.get("kv_cache_memory_bytes")
    if isinstance(given, int):
        cache = given * devices
    else:
        model = read_architecture(folder)
        wanted = options.get("max_model_len")
        tokens = wanted if isinstance(wanted, int) and wanted > 0 else _DEFAULT_CONTEXT_TOKENS
        cache = (kv_bytes_per_token(model) or 0) * tokens
    return weights + cache + _ENGINE_OVERHEAD_BYTES * devices


def _tensor_bytes(path: pathlib.Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError("the header is too long")
        header = json.loads(file.read(length))
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    )
