"""What the installed vLLM would make of a model that is not loaded; vLLM must be imported."""

import os
import pathlib
from collections.abc import Mapping

import msgspec

from cortex_core.harness import Capabilities, Knowledge, Limit, ModelSpec
from cortex_core.knowledge import KvShape, ModelFacts
from neuron.engines.vllm_bringup import settle_parsers
from neuron.engines.vllm_options import EngineOptions
from neuron.engines.vllm_placement import CPU_KV_CACHE_BYTES
from neuron.weights.description import (
    Description,
    has_chat_template,
    kv_shape,
    longest_context,
    read_description,
)
from neuron.weights.sizes import read_weights

_REWRITING = ("hf_overrides", "model_impl", "config_format", "hf_config_path", "load_format")
"""Options with which the files no longer say what will be loaded."""

_SPARING = (
    "num_gpu_blocks_override",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
    "kv_sharing_fast_prefill",
)
"""Options with which a device keeps less of a context, or another number of blocks."""

_SAMPLING: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_new_tokens": "max_tokens",
}
"""Fields of `generation_config.json` that vLLM takes for defaults, and the fields of a request
that they stand in for (`ModelConfig.get_diff_sampling_param`)."""

_ONE_BYTE = ("fp8", "int8")

_TAKEN_OVER = frozenset({"auto-round", "auto_round", "intel/auto-round"})
"""Methods that others of vLLM's read under their own names."""

_GENERATES = ("ForCausalLM", "ForConditionalGeneration")
"""Endings of architectures that write text; from others vLLM may derive one that it has."""


def study(
    spec: ModelSpec,
    options: EngineOptions,
    folder: pathlib.Path | None,
    *,
    is_pickle_allowed: bool,
) -> Knowledge:
    """Return what is known of a load; blocks, and reads small files and headers of large ones.

    Args:
        spec: as asked for.
        options: of it, checked.
        folder: where the weights are; `None` is not here.
        is_pickle_allowed: whether such weights may be read.
    """
    from vllm.plugins import load_general_plugins

    # They may bring architectures, quantisations and formats; once for each process.
    load_general_plugins()
    model = read_description(folder) if folder is not None else Description()
    tool_parser, reasoning_parser = settle_parsers(spec.model, folder, options)
    facts = ModelFacts(
        is_here=folder is not None,
        formats=_formats(is_pickle_allowed),
        context=_count(options, "max_model_len"),
        cache_bytes=_cache_bytes(options),
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
    )
    if folder is None:
        return Knowledge(facts=facts, limit=Limit(context=facts.context))
    facts = _with_files(facts, spec, options, model, folder)
    context = facts.context or facts.longest
    return Knowledge(
        facts=facts,
        capabilities=_capabilities(facts, options, model),
        limit=Limit(context=context),
        sampling=_sampling(options, model),
    )


def _with_files(
    facts: ModelFacts,
    spec: ModelSpec,
    options: EngineOptions,
    model: Description,
    folder: pathlib.Path,
) -> ModelFacts:
    """Return `facts` with what the files say, as far as the options leave it to them."""
    weights = read_weights(folder)
    if any(options.engine.get(name, "auto") not in (None, {}, "auto") for name in _REWRITING):
        return msgspec.structs.replace(facts, weights_bytes=weights.size_bytes)
    is_latent = model.number("kv_lora_rank") is not None
    quantization, group_size = _quantization(model)
    online = spec.quant or options.engine.get("quantization")
    method = quantization or (online if isinstance(online, str) else None)
    template = options.serving.chat_template is not None or has_chat_template(model)
    in_gguf = weights.gguf is not None and "tokenizer.chat_template" in weights.gguf.keys
    return msgspec.structs.replace(
        facts,
        weights_bytes=weights.size_bytes,
        format=weights.format,
        damage=weights.damage,
        architectures=model.architectures,
        is_known_architecture=_is_known(model),
        quantization=method,
        is_known_quantization=_is_known_quantization(method),
        min_capability=_min_capability(method),
        group_size=group_size,
        attention_heads=model.number("num_attention_heads"),
        kv_heads=None if is_latent else model.number("num_key_value_heads"),
        vocab_size=model.number("vocab_size"),
        intermediate_size=model.number("intermediate_size"),
        kv=_kv(options, model),
        longest=None if "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in os.environ else longest_context(model),
        has_chat_template=True if in_gguf else template,
        is_generative=_is_generative(options, model),
    )


def _formats(is_pickle_allowed: bool) -> tuple[str, ...]:
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

    # A plugin brings it; vLLM itself reads none of them any more.
    gguf = ("gguf",) if "gguf" in _LOAD_FORMAT_TO_MODEL_LOADER else ()
    return ("safetensors", *gguf, *(("pickle",) if is_pickle_allowed else ()))


def _cache_bytes(options: EngineOptions) -> int | None:
    from vllm.platforms import current_platform

    given = _count(options, "kv_cache_memory_bytes")
    if given is None and current_platform.is_cpu():
        return CPU_KV_CACHE_BYTES
    return given


def _kv(options: EngineOptions, model: Description) -> KvShape | None:
    element_bytes, is_exact = 2, True
    kind, dtype = options.engine.get("kv_cache_dtype"), options.engine.get("dtype")
    if isinstance(kind, str) and kind != "auto":
        element_bytes = 1 if kind.startswith(_ONE_BYTE) else 2
        is_exact = kind.startswith(_ONE_BYTE) or kind in ("float16", "bfloat16")
    elif dtype in ("float32", "float"):
        element_bytes = 4
    quantization = model.config.get("quantization_config")
    if isinstance(quantization, dict) and kind in (None, "auto"):
        # The files may say that the cache is quantised as well.
        is_exact = not any(name.startswith("kv_cache") for name in quantization)
    is_exact = is_exact and not any(options.engine.get(name) for name in _SPARING)
    shape = kv_shape(model, element_bytes)
    if shape is None:
        return None
    return msgspec.structs.replace(shape, is_exact=shape.is_exact and is_exact)


def _is_known(model: Description) -> bool | None:
    """Return whether vLLM has the architecture; `None` where it may find another way to it."""
    import transformers
    from vllm.model_executor.models.registry import ModelRegistry

    if not model.architectures:
        return None
    known = ModelRegistry.get_supported_archs()
    if any(name in known for name in model.architectures):
        return True
    has_code = "auto_map" in model.config or "speculators_config" in model.config
    # It runs what transformers has, and makes classifiers and embedders out of what generates.
    names = dir(transformers)
    is_derived = any(not name.endswith(_GENERATES) for name in model.architectures)
    if has_code or is_derived or any(name in names for name in model.architectures):
        return None
    return False


def _quantization(model: Description) -> tuple[str | None, int | None]:
    """Return method and group size that the files say."""
    for name in ("quantization_config", "compression_config"):
        table = model.config.get(name)
        if isinstance(table, dict) and isinstance(table.get("quant_method"), str):
            group = table.get("group_size", table.get("q_group_size"))
            method = table["quant_method"].lower().replace("_tensors", "-tensors")
            return method, group if type(group) is int else None
    return None, None


def _is_known_quantization(method: str | None) -> bool | None:
    """Return whether vLLM has the method on this platform; `None` where one may stand for it."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform

    if method is None or method in _TAKEN_OVER:
        return None
    if method not in QUANTIZATION_METHODS:
        return False
    supported = current_platform.supported_quantization
    return not supported or method in supported


def _min_capability(method: str | None) -> str | None:
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        get_quantization_config,
    )
    from vllm.platforms import current_platform

    if method not in QUANTIZATION_METHODS or not current_platform.is_cuda():
        return None
    number = get_quantization_config(method).get_min_capability()
    return f"{number // 10}.{number % 10}" if number > 0 else None


def _is_generative(options: EngineOptions, model: Description) -> bool | None:
    runner = options.engine.get("runner")
    if runner in ("generate", "pooling"):
        return runner == "generate"
    if options.engine.get("convert") not in (None, "auto", "none"):
        return False
    names = model.architectures
    if not names:
        return None
    if any(name.endswith(_GENERATES) for name in names):
        # vLLM makes an embedder of one that says so in these files.
        return None if "modules.json" in model.files else True
    return None


def _capabilities(
    facts: ModelFacts, options: EngineOptions, model: Description
) -> Capabilities | None:
    if facts.is_generative is None:
        return None
    if not facts.is_generative:
        # Which texts belong together can be told from their embeddings too.
        is_embedder = _is_embedder(options, model)
        return Capabilities(embeddings=True, scoring=True) if is_embedder else None
    chats = facts.has_chat_template is True
    limits = options.engine.get("limit_mm_per_prompt")
    limits = limits if isinstance(limits, dict) else {}
    parts = {**model.config, **_inner(model)}
    return Capabilities(
        chat=chats,
        completions=True,
        tools=chats and facts.tool_parser is not None,
        reasoning=chats and facts.reasoning_parser is not None,
        vision=chats and "vision_config" in parts and limits.get("image") != 0,
        audio=chats and "audio_config" in parts and limits.get("audio") != 0,
    )


def _inner(model: Description) -> Mapping[str, object]:
    part = model.config.get("thinker_config")
    return part if isinstance(part, dict) else {}


def _is_embedder(options: EngineOptions, model: Description) -> bool:
    if options.engine.get("convert") == "embed":
        return True
    return not any("Classification" in name for name in model.architectures)


def _sampling(options: EngineOptions, model: Description) -> dict[str, float]:
    source = options.engine.get("generation_config", "auto")
    told = dict(model.generation) if source == "auto" else {}
    override = options.engine.get("override_generation_config")
    if isinstance(override, dict):
        told |= override
    return {
        field: float(value) if isinstance(value, float) else value
        for name, field in _SAMPLING.items()
        if isinstance(value := told.get(name), int | float) and not isinstance(value, bool)
    }


def _count(options: EngineOptions, name: str) -> int | None:
    value = options.engine.get(name)
    return value if type(value) is int and value > 0 else None
