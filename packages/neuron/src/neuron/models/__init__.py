"""The models that ship with the neuron, as folders that any engine can load.

`tools/tiny_model` makes them; `README.md` here says what they answer.
"""

import types
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId

_KV_CACHE_BYTES = 64 << 20
"""Room for 65,536 tokens of `cortex/tiny`, 16 callers at the full context."""

_OVERHEAD_BYTES = 1 << 30
"""What an engine holds on a device beside weights and cache: driver context and activations.
An estimate, corrected by what loads measure."""


class BuiltinModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is there without a download."""

    path: Path
    """Folder with weights, tokenizer and configuration."""
    engine: Mapping[str, object]
    """Engine options under vLLM's names; a profile's own ones go before them."""
    vram_bytes: int
    """Device memory that it is expected to hold."""


_HERE = Path(__file__).parent

BUILTIN: Mapping[ModelId, BuiltinModel] = types.MappingProxyType(
    {
        ModelId("cortex/tiny"): BuiltinModel(
            path=_HERE / "tiny",
            engine=types.MappingProxyType(
                {
                    "dtype": "bfloat16",
                    "max_model_len": 4096,
                    "max_num_seqs": 64,
                    "kv_cache_memory_bytes": _KV_CACHE_BYTES,
                    "enforce_eager": True,
                    # JSON allows blanks without end between two tokens, and a model that was never
                    # taught JSON writes them.
                    "structured_outputs_config": {
                        "backend": "xgrammar",
                        "disable_any_whitespace": True,
                    },
                    "tool_call_parser": "hermes",
                    # Otherwise it calls a tool that is in the prompt, whatever `tool_choice` says.
                    "exclude_tools_when_tool_choice_none": True,
                    "reasoning_parser": "qwen3",
                    # vLLM's qwen3 parser takes thinking to be on unless it is told otherwise, and
                    # would then call every answer without a `</think>` reasoning. A default that
                    # template and parser both see keeps plain answers plain.
                    "default_chat_template_kwargs": {"enable_thinking": False},
                }
            ),
            vram_bytes=_OVERHEAD_BYTES + _KV_CACHE_BYTES,
        ),
        ModelId("cortex/tiny-embed"): BuiltinModel(
            path=_HERE / "tiny_embed",
            engine=types.MappingProxyType(
                {
                    "runner": "pooling",
                    "dtype": "float32",
                    "max_model_len": 512,
                    "max_num_seqs": 64,
                    "kv_cache_memory_bytes": _KV_CACHE_BYTES,
                    "enforce_eager": True,
                }
            ),
            vram_bytes=_OVERHEAD_BYTES,
        ),
    }
)


def completed(spec: ModelSpec, builtin: Mapping[ModelId, BuiltinModel] = BUILTIN) -> ModelSpec:
    """Return `spec` with what a built-in model has beside it; the spec's own goes first."""
    model = builtin.get(spec.model)
    if model is None:
        return spec
    return msgspec.structs.replace(
        spec,
        engine={**model.engine, **spec.engine},
        vram_bytes=spec.vram_bytes or model.vram_bytes,
    )
