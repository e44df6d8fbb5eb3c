"""What a model's own files say of it: `config.json` and the small ones beside it.

Names of fields: transformers' configuration classes, and what vLLM makes of them
(`vllm/transformers_utils/model_arch_config_convertor.py`, `vllm/config/model.py`, 0.32).
"""

import json
import pathlib
from collections.abc import Iterator, Mapping

import msgspec

from cortex_core.knowledge import KvShape

Fields = Mapping[str, object]

_MAX_FILE_BYTES = 32 << 20
"""`tokenizer_config.json` is the largest of them, with a few of it."""

_TEXT_PARTS = ("text_config", "llm_config", "language_config")

_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip

_SCALED_ALREADY = frozenset(
    {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
)
"""Kinds of position scaling that `max_position_embeddings` has in it."""

_MAX_FACTOR = 1e6
"""Positions are not scaled by more than that; JSON has numbers that no float has."""

_PLAIN_TYPES = frozenset(
    {
        "deepseek_v2", "deepseek_v3", "gemma2", "gemma3_text", "gpt_oss", "granite", "llama",
        "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    }
)  # fmt: skip
"""Model types whose cache is known to be what their configuration says."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one model, decoded; empty where one is missing or no JSON object."""

    config: Fields = msgspec.field(default_factory=dict)
    tokenizer: Fields = msgspec.field(default_factory=dict)
    generation: Fields = msgspec.field(default_factory=dict)
    files: frozenset[str] = frozenset()
    """Names of all files."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """As the configuration names them."""
        names = self.config.get("architectures")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def text(self) -> Fields:
        """The part of the configuration that describes the language model."""
        whole = _table(self.config, "thinker_config") or self.config
        return next((part for name in _TEXT_PARTS if (part := _table(whole, name))), whole)

    def number(self, name: str) -> int | None:
        """Return a positive whole number of the language model."""
        return _number(self.text, name)


def read_description(folder: pathlib.Path) -> Description:
    """Return what is there; never fails."""
    try:
        files = frozenset(path.name for path in folder.iterdir())
    except OSError:
        files = frozenset()
    return Description(
        config=_read(folder / "config.json"),
        tokenizer=_read(folder / "tokenizer_config.json"),
        generation=_read(folder / "generation_config.json"),
        files=files,
    )


def longest_context(model: Description) -> int | None:
    """Return the longest context that the engine gives the model; `None` is not known."""
    text = model.text
    if "sentence_bert_config.json" in model.files or "max_position_embeddings" not in text:
        return None
    told = _number(text, "model_max_length") or min(
        (length for name in _LENGTHS if (length := _number(text, name))), default=None
    )
    if told is None or "gemma3" in str(text.get("model_type")):
        return told
    factor = 1.0
    for scaling in _scalings(text):
        kind = str(scaling.get("rope_type", scaling.get("type", "default")))
        given = scaling.get("factor")
        if kind not in _SCALED_ALREADY and isinstance(given, int | float) and given < _MAX_FACTOR:
            factor = float(given)
    return int(told * factor) if factor >= 1 else None


def kv_shape(model: Description, element_bytes: int) -> KvShape | None:
    """Return how the cache grows; `None` when the configuration does not say.

    Args:
        model: its files.
        element_bytes: of one number in the cache.
    """
    layers, heads = model.number("num_hidden_layers"), model.number("num_attention_heads")
    if layers is None or heads is None:
        return None
    full, windowed, window = _layers(model.text, layers)
    is_plain = str(model.text.get("model_type")) in _PLAIN_TYPES
    is_exact = is_plain and full + windowed == layers and not _is_vague(model.text, windowed)
    latent = model.number("kv_lora_rank")
    if latent is not None:
        size = latent + (model.number("qk_rope_head_dim") or 0)
        kv_heads, head_bytes = 1, size * element_bytes
    else:
        head = model.number("head_dim") or (model.number("hidden_size") or 0) // heads
        if not head:
            return None
        kv_heads, head_bytes = model.number("num_key_value_heads") or heads, 2 * head
        head_bytes *= element_bytes
    return KvShape(
        heads=kv_heads,
        head_bytes=head_bytes,
        full_layers=full,
        window_layers=windowed,
        window=window,
        is_exact=is_exact,
    )


def has_chat_template(model: Description) -> bool | None:
    """Return whether chats can be written for the model; `None` when its files do not say."""
    if not model.files:
        return None
    if model.tokenizer.get("chat_template") or model.files & {
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates",
    }:
        return True
    # Tokenizers of Mistral's own kind have it within them.
    if "tekken.json" in model.files or not model.tokenizer:
        return None
    return False


def _layers(text: Fields, layers: int) -> tuple[int, int, int]:
    """Return the layers that keep all tokens, those that keep a window, and the window."""
    window = _number(text, "sliding_window") or 0
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        full = sum(kind == "full_attention" for kind in kinds)
        windowed = sum(kind == "sliding_attention" for kind in kinds)
        return (full, windowed, window) if window else (full + windowed, 0, 0)
    if not window or text.get("use_sliding_window") is False:
        return layers, 0, 0
    if str(text.get("model_type")) in ("mistral", "mixtral"):
        return 0, layers, window
    # Which layers look through the window is not said: as if none did.
    return layers, 0, 0


def _is_vague(text: Fields, windowed: int) -> bool:
    """Say whether some layers look through a window and nobody says which."""
    is_told = isinstance(text.get("layer_types"), list) or text.get("use_sliding_window") is False
    return _number(text, "sliding_window") is not None and not windowed and not is_told


def _scalings(text: Fields) -> Iterator[Fields]:
    """Yield the tables that scale positions, one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        table = _table(text, name)
        inner: list[Fields] = [part for part in table.values() if isinstance(part, dict)]
        yield from inner or ([table] if table else [])


def _table(fields: Fields, name: str) -> Fields:
    part = fields.get(name)
    return part if isinstance(part, dict) else {}


def _number(fields: Fields, name: str) -> int | None:
    value = fields.get(name)
    # A bool is an int, and no number of anything.
    return value if type(value) is int and value > 0 else None


def _read(path: pathlib.Path) -> Fields:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return {}
        decoded = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
