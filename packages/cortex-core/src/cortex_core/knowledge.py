"""What a model's files, and the engine that would read them, say before anything is loaded."""

import msgspec


class KvShape(msgspec.Struct, frozen=True, kw_only=True):
    """How the KV cache of a model grows with its tokens."""

    heads: int
    """Heads of keys and values, which devices divide among themselves; 1 where each device keeps
    all of it."""
    head_bytes: int
    """Keys and values of one head, one layer and one token."""
    full_layers: int
    """Layers that look at all tokens."""
    window_layers: int = 0
    """Layers that look at the last `window` tokens."""
    window: int = 0
    is_exact: bool = True
    """Whether the engine takes at least this much; otherwise it is a guess."""

    def device_bytes(self, tokens: int, tensor_parallel: int = 1) -> int:
        """Return what `tokens` tokens of one request take on each of the devices of a group."""
        heads = max(1, self.heads // tensor_parallel)
        kept = self.full_layers * tokens + self.window_layers * min(tokens, self.window)
        return heads * self.head_bytes * kept


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one load without a device; `None` is not known throughout."""

    is_here: bool | None = None
    """Whether the weights are on this machine."""
    weights_bytes: int | None = None
    """All tensors, from the headers of their files."""
    format: str | None = None
    """`safetensors`, `gguf` or `pickle`."""
    formats: tuple[str, ...] = ()
    """Those that the engine may read here."""
    damage: str | None = None
    """Why a file cannot be what it says it is; `None` when nothing was found."""
    architectures: tuple[str, ...] = ()
    is_known_architecture: bool | None = None
    quantization: str | None = None
    is_known_quantization: bool | None = None
    min_capability: str | None = None
    """Compute capability that the quantisation needs, such as `7.5`."""
    group_size: int | None = None
    """Of the quantisation; rows of a device must hold whole groups."""
    attention_heads: int | None = None
    kv_heads: int | None = None
    """`None` as well where they are not divided."""
    vocab_size: int | None = None
    intermediate_size: int | None = None
    kv: KvShape | None = None
    cache_bytes: int | None = None
    """KV cache on each device, where the load fixes it."""
    context: int | None = None
    """Context that the load asks for, in tokens; `None` takes what there is room for."""
    longest: int | None = None
    """The model's own limit of that."""
    has_chat_template: bool | None = None
    tool_parser: str | None = None
    """`None` is that there is none."""
    reasoning_parser: str | None = None
    is_generative: bool | None = None
    """Whether it writes text, so that templates and parsers matter."""
