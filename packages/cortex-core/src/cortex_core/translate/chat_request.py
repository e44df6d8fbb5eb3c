"""Chat completion requests for upstreams that speak nothing but Anthropic's messages.

Source: Anthropic API reference, "Create a Message" (read November 2026). What the other dialect
cannot say is left out when that is harmless and refused when it is not; the table of
`docs/reference/translation-chat.md` says which, field by field.
"""

from collections.abc import Mapping

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.translate.chat_turns import turns_of
from cortex_core.translate.messages_request import EFFORTS, MIN_BUDGET_TOKENS
from cortex_core.translate.target import Target
from cortex_core.wire.anthropic.request import (
    MessagesRequest,
    Metadata,
    OutputConfig,
    OutputFormat,
    Thinking,
)
from cortex_core.wire.anthropic.tools import ToolChoice, ToolDefinition
from cortex_core.wire.openai.chat import ChatRequest, NamedToolChoice, Tool

DEFAULT_MAX_TOKENS = 4096
"""Where neither the caller nor the catalogue says: every model of the vendor can give as much."""

JSON_INSTRUCTION = "Answer with a single JSON object and nothing else."
"""Stands for `response_format: json_object`, which the dialect does not have."""

_EFFORTS = {"minimal": "low", **{effort: effort for effort in EFFORTS}}

_CHOICES = {"auto": "auto", "required": "any"}

_SAMPLING = ("temperature", "top_p", "top_k")

_IGNORED = (
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_p",
    "chat_template_kwargs",
    "metadata",
    "prompt_cache_key",
    "service_tier",
    "store",
    "verbosity",
)
"""Fields that say something about how, not about what; left out and reported."""

_REFUSED = (
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "audio",
    "functions",
    "function_call",
    "structured_outputs",
    "web_search_options",
)
"""Fields without a counterpart, whose absence would change the answer."""


class ToMessages(msgspec.Struct, frozen=True, kw_only=True):
    """A chat completion request as a request for a message."""

    request: MessagesRequest
    ignored: tuple[str, ...] = ()
    """Paths of what was left out although the caller wrote it, such as `seed`; harmless things
    only: what would change the meaning is refused."""


def chat_to_messages(request: ChatRequest, target: Target) -> ToMessages:
    """Return `request` as an upstream of Anthropic's dialect takes it.

    Args:
        request: after `chat_normal.normalise`.
        target: the model, as the upstream knows it.

    Raises:
        InvalidRequestError: something in it cannot be said there; `param` is its path.
    """
    _refuse(request)
    ignored = [name for name in _IGNORED if getattr(request, name)]
    turns = turns_of(request, ignored)
    max_tokens = _max_tokens(request, target)
    choice = _tool_choice(request)
    thinking = _thinking(request, max_tokens, choice, ignored)
    output_format, instruction = _output_format(request)
    # Sampling is fixed while a model thinks.
    is_free = thinking is None or thinking.type == "disabled"
    if not is_free:
        ignored += [name for name in _SAMPLING if getattr(request, name) is not None]
    messages = MessagesRequest(
        model=target.model,
        messages=turns.messages,
        max_tokens=max_tokens,
        system="\n\n".join(filter(None, (turns.system, instruction))) or None,
        stream=request.stream or None,
        stop_sequences=_stop_sequences(request, ignored),
        temperature=_temperature(request) if is_free else None,
        top_p=request.top_p if is_free else None,
        top_k=_top_k(request) if is_free else None,
        tools=_tools(request.tools),
        tool_choice=choice,
        thinking=thinking,
        output_config=_output_config(request, output_format),
        metadata=_metadata(request),
    )
    return ToMessages(request=messages, ignored=tuple(ignored))


def _temperature(request: ChatRequest) -> float | None:
    """Return it on a scale that ends at 1; here it ends at 2."""
    return None if request.temperature is None else min(request.temperature, 1.0)


def _top_k(request: ChatRequest) -> int | None:
    # vLLM takes 0 and -1 for all tokens.
    return request.top_k if request.top_k is not None and request.top_k > 0 else None


def _refuse(request: ChatRequest) -> None:
    for name in _REFUSED:
        value = getattr(request, name)
        if bytes(value) not in (b"", b"null") if isinstance(value, msgspec.Raw) else value:
            raise InvalidRequestError(
                f"the upstream of {request.model!r} has nothing like `{name}`; leave it out",
                param=name,
            )
    if request.n not in (None, 1):
        raise InvalidRequestError(
            f"the upstream of {request.model!r} gives one answer; ask for `n` of 1", param="n"
        )
    if "audio" in (request.modalities or ()):
        raise InvalidRequestError("no model here speaks; ask for text alone", param="modalities")


def _max_tokens(request: ChatRequest, target: Target) -> int:
    asked = request.max_completion_tokens
    if asked is None:
        asked = request.max_tokens
    if asked is None:
        return target.limit.output or DEFAULT_MAX_TOKENS
    return asked if target.limit.output is None else min(asked, target.limit.output)


def _stop_sequences(request: ChatRequest, ignored: list[str]) -> tuple[str, ...] | None:
    stop = (request.stop,) if isinstance(request.stop, str) else request.stop or ()
    # Blank ones are an error there.
    kept = tuple(text for text in stop if text.strip())
    if len(kept) < len(stop):
        ignored.append("stop")
    return kept or None


def _tools(tools: tuple[Tool, ...] | None) -> tuple[ToolDefinition, ...] | None:
    return tuple(_tool(tool) for tool in tools) if tools else None


def _tool(tool: Tool) -> ToolDefinition:
    function = tool.function
    return ToolDefinition(
        name=function.name,
        description=function.description or None,
        input_schema=_object_schema(function.parameters),
        strict=function.strict or None,
    )


def _object_schema(parameters: Mapping[str, object] | None) -> Mapping[str, object]:
    """Return the schema with the `type` that is demanded there and may be missing here."""
    if not parameters:
        return {"type": "object", "properties": {}}
    return parameters if "type" in parameters else {"type": "object", **parameters}


def _tool_choice(request: ChatRequest) -> ToolChoice | None:
    choice = request.tool_choice
    if not request.tools:
        if choice in (None, "none", "auto"):
            return None
        raise InvalidRequestError("a tool is demanded and none is given", param="tool_choice")
    one = True if request.parallel_tool_calls is False else None
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        return ToolChoice(type="tool", name=name, disable_parallel_tool_use=one)
    if choice is None:
        return ToolChoice(type="auto", disable_parallel_tool_use=one) if one else None
    if choice == "none":
        return ToolChoice(type="none")
    kind = _CHOICES.get(choice)
    if kind is None:
        raise InvalidRequestError(
            f"{choice!r} is no tool choice; use none, auto, required or a function",
            param="tool_choice",
        )
    return ToolChoice(type=kind, disable_parallel_tool_use=one)


def _thinking(
    request: ChatRequest, max_tokens: int, choice: ToolChoice | None, ignored: list[str]
) -> Thinking | None:
    effort = request.reasoning_effort
    budget = request.thinking_token_budget
    if effort is None and budget is None:
        return None
    if effort == "none" or budget == 0:
        return Thinking(type="disabled")
    # There a model that must call a tool cannot think before it does.
    is_forced = choice is not None and choice.type in ("any", "tool")
    # A budget needs thoughts before the calls in history too, and those did not survive.
    is_within_calls = any(message.role == "tool" for message in request.messages[-1:])
    if budget is not None and not (is_forced or is_within_calls or max_tokens <= MIN_BUDGET_TOKENS):
        tokens = min(max(budget, MIN_BUDGET_TOKENS), max_tokens - 1)
        return Thinking(type="enabled", budget_tokens=tokens, display=_display(request))
    if budget is not None:
        ignored.append("thinking_token_budget")
    return None if is_forced else Thinking(type="adaptive", display=_display(request))


def _display(request: ChatRequest) -> str | None:
    return "omitted" if request.include_reasoning is False else None


def _output_config(request: ChatRequest, output_format: OutputFormat | None) -> OutputConfig | None:
    effort = request.reasoning_effort
    if effort in (None, "none"):
        level = None
    elif effort in _EFFORTS:
        level = _EFFORTS[effort]
    else:
        raise InvalidRequestError(
            f"{effort!r} is no effort; use none, {', '.join(_EFFORTS)}", param="reasoning_effort"
        )
    if level is None and output_format is None:
        return None
    return OutputConfig(effort=level, format=output_format)


def _output_format(request: ChatRequest) -> tuple[OutputFormat | None, str]:
    """Return the form of the answer, and what must be said in words for want of one."""
    form = request.response_format
    if form is None or form.type == "text":
        return None, ""
    if form.type == "json_object":
        return None, JSON_INSTRUCTION
    if form.type != "json_schema":
        raise InvalidRequestError(
            f"{form.type!r} is no form of an answer; use text, json_object or json_schema",
            param="response_format.type",
        )
    if form.json_schema is None or form.json_schema.schema is None:
        raise InvalidRequestError(
            "the schema is missing", param="response_format.json_schema.schema"
        )
    return OutputFormat(type="json_schema", schema=form.json_schema.schema), ""


def _metadata(request: ChatRequest) -> Metadata | None:
    user_id = request.user or request.safety_identifier
    return Metadata(user_id=user_id) if user_id else None
