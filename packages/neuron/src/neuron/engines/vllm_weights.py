"""Where a model's weights are on this machine, and how much memory they need.

Layout of the hub cache: huggingface_hub's guide "Understand caching". Header of a safetensors
file: 8 bytes, little endian, its length; then JSON with the byte range of every tensor
(huggingface.co/docs/safetensors, "Format"). Both read November 2026.
"""

import json
import pathlib
import re
import struct
from collections.abc import Mapping

import msgspec

from cortex_core.errors import InvalidRequestError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
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


def find_weights(model: str, cache: pathlib.Path, revision: str = "main") -> pathlib.Path | None:
    """Return the folder that holds a model's weights, whole; `None` when there is none here.

    Args:
        model: a hub id, or the absolute path of a folder.
        cache: folder of the hub cache; need not exist.
        revision: branch, tag or commit.

    Raises:
        InvalidRequestError: `model` is neither of the two.
    """
    if model.startswith("/"):
        folder = pathlib.Path(model)
        return folder if _is_complete(folder) else None
    if not _HUB_ID.fullmatch(model) or ".." in model:
        raise InvalidRequestError(
            f"{model[:200]!r} is neither a hub id such as 'org/name' nor an absolute path",
            param="model_id",
        )
    home = cache / f"models--{model.replace('/', '--')}"
    try:
        commit = (home / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    folder = home / "snapshots" / commit
    return folder if _is_complete(folder) else None


def hub_cache(setting: str | None, environ: Mapping[str, str]) -> pathlib.Path:
    """Return the folder of the hub cache: the setting, else what the hub's library would use."""
    if setting:
        return pathlib.Path(setting)
    for name, tail in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if environ.get(name):
            return pathlib.Path(environ[name]).expanduser() / tail
    base = environ.get("XDG_CACHE_HOME") or pathlib.Path(environ.get("HOME", "/"), ".cache")
    return pathlib.Path(base) / "huggingface" / "hub"


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


def _is_complete(folder: pathlib.Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return False
        return all((folder / str(shard)).is_file() for shard in shards)
    return any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))


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
