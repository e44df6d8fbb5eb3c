"""How a spec becomes an engine of vLLM: options, configuration, start, what it can do."""

import dataclasses
import functools
import logging
import pathlib
import time
import typing
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cortex_core.harness import Capabilities, Limit, ModelInfo, ModelSpec, Route
from neuron.engines.media import MediaPolicy
from neuron.engines.vllm_environment import (
    favour_the_loop,
    own_log_records,
    use_fork_server,
)
from neuron.engines.vllm_families import parsers_for
from neuron.engines.vllm_handlers import engine_handlers, serving_models
from neuron.engines.vllm_options import (
    NO_PARSER,
    EngineOptions,
    ServingOptions,
    check_parser,
    read_options,
)
from neuron.engines.vllm_placement import check_placement, device_arguments
from neuron.engines.vllm_ray import RayCluster, check_ray, cluster_of, ray_arguments
from neuron.engines.vllm_requests import AUDIO, IMAGE, VIDEO
from neuron.engines.vllm_serving import Stack
from neuron.engines.vllm_stats import LoadWindow
from neuron.weights.description import read_description
from neuron.weights.sizes import weights_bytes

IMPORT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries below vLLM raise when they, or a model, cannot be loaded."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a load has put together before the engine starts."""

    config: Any
    """vLLM's `VllmConfig`."""
    serving: ServingOptions
    reasoning_parser: str | None
    registry: CollectorRegistry
    window: LoadWindow
    cluster: RayCluster | None = None
    """Where it runs on Ray."""


def import_vllm() -> None:
    """Import what loads and requests need; seconds, and half a gigabyte."""
    # Until its logging is configured with the first load.
    logging.getLogger("vllm").setLevel(logging.ERROR)
    import vllm.entrypoints.openai.chat_completion.serving
    import vllm.entrypoints.openai.completion.serving
    import vllm.entrypoints.pooling.embed.serving
    import vllm.entrypoints.pooling.scoring.serving
    import vllm.entrypoints.scale_out.token_in_token_out.serving
    import vllm.entrypoints.serve.tokenize.serving
    import vllm.v1.engine.async_llm  # noqa: F401

    use_fork_server()
    favour_the_loop()


def can_sleep() -> bool:
    """Return whether engines can sleep on this platform; vLLM must have been imported."""
    from vllm.platforms import current_platform

    if not current_platform.is_sleep_mode_available():
        return False
    # Where vLLM needs its own allocator for it, it refuses every load without that one.
    return not current_platform.is_cuda_alike() or current_platform.is_cumem_allocator_available()


def load_errors() -> tuple[type[Exception], ...]:
    """Return what vLLM and the libraries below it raise when a model cannot be loaded."""
    from vllm.exceptions import VLLMError
    from zmq.error import ZMQError

    return (*IMPORT_ERRORS, VLLMError, ZMQError)


def total_bytes(folder: pathlib.Path | None) -> int | None:
    """Return how much a load has to read; `None` when it is not known."""
    return weights_bytes(folder) if folder is not None else None


def check_options(spec: ModelSpec) -> EngineOptions:
    """Return the options of a spec, checked against the installed vLLM and its platform.

    Raises:
        InvalidRequestError: one does not exist, has a wrong type, or cannot work here.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    check_placement(spec)
    options = read_options(spec.engine, _engine_fields())
    check_ray(spec, options)
    check_parser(
        "tool_call_parser",
        options.serving.tool_call_parser,
        ToolParserManager.list_registered(),
    )
    reasoning = options.engine.get("reasoning_parser")
    check_parser(
        "reasoning_parser",
        reasoning if isinstance(reasoning, str) else None,
        ReasoningParserManager.list_registered(),
    )
    return options


def configure(spec: ModelSpec, folder: pathlib.Path | None, logging_config: pathlib.Path) -> Parts:
    """Make vLLM's configuration of an engine; blocks, and may ask the hub.

    Args:
        spec: checked.
        folder: the weights; `None` lets vLLM download them.
        logging_config: file that its processes configure their logging from.
    """
    from vllm.config.logging import LoggingConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    options = check_options(spec)
    tool_parser, reasoning_parser = settle_parsers(spec.model, folder, options)
    arguments = device_arguments(spec, options.engine) | ray_arguments(options.serving.ray)
    arguments |= engine_arguments(spec, folder, options, reasoning_parser)
    arguments.setdefault("use_tqdm_on_load", False)
    arguments.setdefault("enable_sleep_mode", can_sleep())
    args = AsyncEngineArgs(
        **arguments,
        # Stops only the text log; ours and Prometheus' loggers are given below.
        disable_log_stats=True,
        enable_log_requests=False,
        logging_config=LoggingConfig(
            configure_logging=True, pylogging_config_file=str(logging_config)
        ),
    )
    with own_log_records():
        config = args.create_engine_config(headless=spec.is_follower)
    return Parts(
        config=config,
        serving=msgspec.structs.replace(options.serving, tool_call_parser=tool_parser),
        reasoning_parser=reasoning_parser,
        registry=CollectorRegistry(),
        window=LoadWindow(),
        cluster=cluster_of(options),
    )


def engine_arguments(
    spec: ModelSpec,
    folder: pathlib.Path | None,
    options: EngineOptions,
    reasoning_parser: str | None,
) -> dict[str, Any]:
    """Return what vLLM's `AsyncEngineArgs` takes, but for where and how the engine runs.

    Args:
        spec: checked.
        folder: the weights; `None` lets vLLM download them.
        options: of `spec`.
        reasoning_parser: name of the reasoning parser, or `None`.
    """
    fields = _engine_fields()
    arguments = {name: _to_config(value, fields[name]) for name, value in options.engine.items()}
    arguments["reasoning_parser"] = reasoning_parser or ""
    # As long as the cache allows, where vLLM would refuse a model whose context is longer.
    arguments.setdefault("max_model_len", -1)
    if spec.quant is not None:
        arguments.setdefault("quantization", spec.quant)
    arguments["model"] = str(folder) if folder is not None else spec.model
    arguments["served_model_name"] = spec.model
    # A second lock: URLs are gone from requests before vLLM sees them, and it opens no others.
    arguments["allowed_media_domains"] = ["nowhere.invalid"]
    return arguments


def start(parts: Parts) -> Any:
    """Start the engine and wait until it is up; blocks.

    Returns:
        vLLM's `AsyncLLM`, with stat loggers that write into `parts`.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    cluster = parts.cluster
    if cluster is not None:
        parts.config.parallel_config.placement_group = cluster.take()
    try:
        with own_log_records():
            return AsyncLLM.from_vllm_config(
                parts.config,
                stat_loggers=[_window_logger(parts.window), _prometheus_logger(parts.registry)],
                disable_log_stats=True,
            )
    except BaseException:
        if cluster is not None:
            cluster.give_back()
        raise


def make_stack(
    llm: Any, model: str, parts: Parts, tasks: tuple[str, ...], media: MediaPolicy
) -> Stack:
    """Return the routes over a started engine."""
    models = serving_models(llm, model)
    handlers = engine_handlers(llm, models, parts.serving, parts.reasoning_parser, tasks)
    by_priority = parts.config.scheduler_config.policy == "priority"
    modalities = modalities_of(llm.renderer)
    return Stack(handlers, modalities, media, has_priorities=by_priority, models=models)


def describe(llm: Any, stack: Stack, parts: Parts, weights: int | None) -> ModelInfo:
    """Return what a started engine can do.

    Args:
        llm: vLLM's `AsyncLLM`.
        stack: the routes over it.
        parts: what it was made of.
        weights: bytes of them; `None` is not known.
    """
    config = llm.model_config
    has_chat = Route.CHAT_COMPLETIONS in stack.routes
    return ModelInfo(
        capabilities=Capabilities(
            chat=has_chat,
            completions=Route.COMPLETIONS in stack.routes,
            embeddings=Route.EMBEDDINGS in stack.routes,
            scoring=Route.SCORE in stack.routes,
            tools=has_chat and parts.serving.tool_call_parser is not None,
            reasoning=has_chat and parts.reasoning_parser is not None,
            vision=has_chat and IMAGE in stack.modalities,
            audio=has_chat and AUDIO in stack.modalities,
            sleep=config.enable_sleep_mode,
        ),
        limit=Limit(context=config.max_model_len),
        sleep_bytes=weights,
        max_in_flight=parts.config.scheduler_config.max_num_seqs,
    )


def modalities_of(renderer: Any) -> frozenset[str]:
    """Return the media that a model takes; a limit of 0 switches one off.

    Args:
        renderer: vLLM's renderer of that model.
    """
    processor = renderer.mm_processor
    if processor is None:
        return frozenset()
    limits = processor.info.allowed_mm_limits
    found = {name for name, most in limits.items() if most}
    # Some models see pictures and films through one kind of input.
    return frozenset(found | {IMAGE, VIDEO} if "vision_chunk" in found else found)


@functools.cache
def _engine_fields() -> dict[str, object]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return {
        field.name: field.type
        for field in dataclasses.fields(AsyncEngineArgs)
        if field.init and not field.name.startswith("_")
    }


def _to_config(value: object, hint: object) -> object:
    """Return a table of options as the configuration class of vLLM that `hint` names."""
    if isinstance(value, dict):
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                return kind(**value)
    return value


def settle_parsers(
    model: str, folder: pathlib.Path | None, options: EngineOptions
) -> tuple[str | None, str | None]:
    """Return tool and reasoning parser: those asked for, else those of the model's family."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    known = (*ToolParserManager.list_registered(), *ReasoningParserManager.list_registered())
    architectures = read_description(folder).architectures if folder is not None else ()
    family = parsers_for(model, architectures, known)
    tool_parser = options.serving.tool_call_parser or family.tool_call
    reasoning = options.engine.get("reasoning_parser") or family.reasoning
    return (
        None if tool_parser == NO_PARSER else tool_parser,
        None if reasoning == NO_PARSER else str(reasoning) if reasoning else None,
    )


def _window_logger(window: LoadWindow) -> Any:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class WindowLogger(StatLoggerBase):  # type: ignore[misc]
        """Writes the scheduler's counts and the tokens of each step into `window`."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                window.set_scheduler(
                    scheduler_stats.num_running_reqs,
                    scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                    scheduler_stats.kv_cache_usage,
                )
            if iteration_stats is not None:
                window.add_tokens(
                    time.monotonic(),
                    iteration_stats.num_prompt_tokens,
                    iteration_stats.num_generation_tokens,
                )

        def log_engine_initialized(self) -> None:
            pass

    return WindowLogger


def _prometheus_logger(registry: CollectorRegistry) -> Any:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    # The stock logger takes the process-wide registry and first clears it of the series of
    # all other engines. A subclass of it keeps vLLM from adding the stock one.
    return type(
        "EnginePrometheusLogger",
        (PrometheusStatLogger,),
        {
            "_gauge_cls": functools.partial(Gauge, registry=registry),
            "_counter_cls": functools.partial(Counter, registry=registry),
            "_histogram_cls": functools.partial(Histogram, registry=registry),
        },
    )
