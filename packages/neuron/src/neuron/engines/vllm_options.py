"""Engine options of a profile, sorted into vLLM's own and those of its serving classes."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping

import msgspec

from cortex_core.errors import InvalidRequestError

RESERVED = frozenset(
    {
        "model",
        "served_model_name",
        "device_ids",
        "allowed_local_media_path",
        "allowed_media_domains",
        "log_config_file",
        "logging_config",
        "disable_log_stats",
        "enable_log_requests",
        "aggregate_engine_logging",
        "data_parallel_size",
        "pipeline_parallel_size",
        "tensor_parallel_size",
        "nnodes",
        "node_rank",
        "master_addr",
        "master_port",
    }
)
"""Options of vLLM that the neuron sets itself; the spec has its own fields for what they say."""

_PARALLEL = frozenset({"pipeline_parallel", "tensor_parallel"})

NO_PARSER = "none"
"""Value of a parser option that turns the parser off, also the one picked by family."""


class RayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ray`: the cluster of an engine whose `distributed_executor_backend` is `ray`."""

    address: str | None = None
    """Such as `ray-head:6379`; absent takes the cluster that this machine is a part of."""
    tensor_parallel: typing.Annotated[int, msgspec.Meta(ge=1)] = 1
    """Devices of the cluster that share each layer."""
    pipeline_parallel: typing.Annotated[int, msgspec.Meta(ge=1)] = 1
    """Stages of so many devices each."""
    wait_s: typing.Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How long the cluster gets to have them free."""


class ServingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that are not the engine's own.

    They are those of vLLM's serving classes, with names and meaning as of `vllm serve`, and `ray`.
    """

    tool_call_parser: str | None = None
    """`none` turns tool calls off; absent takes the parser of the model's family."""
    chat_template: str | None = None
    """Path of a template, or the template itself; absent takes the model's own."""
    chat_template_content_format: typing.Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, object] | None = None
    trust_request_chat_template: bool = False
    response_role: str = "assistant"
    exclude_tools_when_tool_choice_none: bool = False
    tool_strict_level: str = "auto"
    return_tokens_as_token_ids: bool = False
    enable_force_include_usage: bool = False
    ray: RayOptions | None = None


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one engine."""

    engine: dict[str, object]
    """Keyword arguments for vLLM's `AsyncEngineArgs`, n >= 0."""
    serving: ServingOptions


def read_options(
    options: Mapping[str, object], engine_fields: Mapping[str, object]
) -> EngineOptions:
    """Sort and check the options of a spec.

    Args:
        options: names and values as TOML and JSON can say them, n >= 0.
        engine_fields: vLLM's own options with their type annotations. An annotation that is
            none of Python's own types is left for vLLM to check.

    Raises:
        InvalidRequestError: an option does not exist, is set by the neuron itself, or has a
            wrong type; `param` names it.
    """
    for name in options:
        if name in RESERVED:
            ours = name.removesuffix("_size")
            cure = f"use {ours!r} of the load" if ours in _PARALLEL else "leave it out"
            raise InvalidRequestError(
                f"engine option {name!r} is set by the neuron; {cure}", param=_param(name)
            )
    own = {name: value for name, value in options.items() if name in _SERVING_FIELDS}
    engine = {name: value for name, value in options.items() if name not in _SERVING_FIELDS}
    for name, value in engine.items():
        if name not in engine_fields:
            known = {*engine_fields, *_SERVING_FIELDS} - RESERVED
            raise InvalidRequestError(
                f"there is no engine option {name!r}{nearest(name, known)}", param=_param(name)
            )
        if not _is_of(value, engine_fields[name]):
            raise InvalidRequestError(
                f"engine option {name!r} is {type(value).__name__} {_short(value)}; "
                f"expected {_spell(engine_fields[name])}",
                param=_param(name),
            )
    return EngineOptions(engine=engine, serving=_serving(own))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the known name that is most like `name`, or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_parser(option: str, parser: str | None, known: Iterable[str]) -> None:
    """Check that a parser exists.

    Raises:
        InvalidRequestError: it does not; the message names the nearest that does.
    """
    if parser is None or parser in (NO_PARSER, ""):
        return
    names = sorted(known)
    if parser not in names:
        raise InvalidRequestError(
            f"there is no {option} {parser!r}{nearest(parser, names)}; known: {', '.join(names)}",
            param=_param(option),
        )


def _serving(own: Mapping[str, object]) -> ServingOptions:
    try:
        return msgspec.convert(own, ServingOptions)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`") or "engine"
        raise InvalidRequestError(f"engine option {name!r}: {text}", param=_param(name)) from None


def _is_of(value: object, hint: object) -> bool:
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is typing.Annotated:
        return _is_of(value, arguments[0])
    if origin in (list, tuple, set):
        return isinstance(value, list | tuple)
    return _is_plain(value, origin)


def _is_plain(value: object, kind: object) -> bool:
    if kind in (None, types.NoneType):
        return value is None
    if kind in (bool, str):
        return type(value) is kind
    if kind is int:
        return type(value) is int
    if kind is float:
        return type(value) in (int, float)
    if kind is dict:
        return isinstance(value, Mapping)
    # A name that is not resolved, or a configuration class of vLLM, which checks it itself.
    return True


def _spell(hint: object) -> str:
    if isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "")[:200]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _param(name: str) -> str:
    return f"engine.{name}"


_SERVING_FIELDS = frozenset(ServingOptions.__struct_fields__)
