"""What the simulated engine will answer, decided before a single token is due."""

import itertools
from collections.abc import Sequence

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import ContextLengthError, InvalidRequestError
from neuron.engines.simulation.instance import smallest_instance
from neuron.engines.simulation.requests import (
    ChatRequest,
    CompletionRequest,
    Generation,
    Inputs,
    Message,
    Part,
    Tool,
    ToolChoice,
)
from neuron.engines.simulation.text import (
    answer_tokens,
    count_tokens,
    cut_at_stop,
    decode_tokens,
    tokens_of,
)

# OpenAI API reference, "Create completion": the default of `max_tokens`.
_COMPLETION_TOKENS = 16


class PlannedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    tokens: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int
    """Tokens that are read before the first of these; 0 when another choice reads them."""
    tool: str | None = None
    """The tokens are the arguments of a call of this tool."""
    echo: str = ""
    """The prompt, when it is wanted back in front of the answer."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is answered to one request."""

    choices: tuple[PlannedChoice, ...]
    """In index order, at least one."""
    prompt_tokens: int
    is_chat: bool
    has_usage: bool = False
    """Whether a stream ends with its usage."""
    has_continuous_usage: bool = False
    """Whether every chunk of a stream has the usage so far."""


def plan_chat(request: ChatRequest, context_tokens: int) -> Plan:
    """Decide the answer to a conversation.

    Raises:
        InvalidRequestError: a field cannot be honoured; `param` names it.
        ContextLengthError: the conversation leaves no room for an answer.
    """
    if request.logprobs:
        raise InvalidRequestError("this model has no log probabilities", param="logprobs")
    prompt = conversation_text(request.messages)
    prompt_tokens = count_tokens(prompt)
    limit = _room(prompt_tokens, context_tokens)
    most = min(limit, request.max_completion_tokens or request.max_tokens or limit)
    tool = _forced_tool(request)
    form = _form(request, tool)
    choices = []
    for index in range(request.choices):
        tokens, reason = (
            _generated(request, prompt, index, most) if form is None else (tokens_of(form), "stop")
        )
        if tool is not None and request.tool_choice == "required":
            reason = "tool_calls"
        tokens, reason = _limited(tokens, reason, most)
        choices.append(
            PlannedChoice(
                tokens=tuple(tokens),
                finish_reason=reason,
                prompt_tokens=prompt_tokens if index == 0 else 0,
                tool=tool.function.name if tool is not None and tool.function else None,
            )
        )
    return _planned(request, choices, prompt_tokens, is_chat=True)


def plan_completion(request: CompletionRequest, context_tokens: int) -> Plan:
    """Decide the answer to prompts; choice `prompt x n + i` is the i-th to that prompt.

    Raises:
        InvalidRequestError: a field cannot be honoured; `param` names it.
        ContextLengthError: a prompt leaves no room for an answer.
    """
    if request.logprobs is not None:
        raise InvalidRequestError("this model has no log probabilities", param="logprobs")
    choices = []
    total = 0
    for prompt in texts_of(request.prompt, "prompt"):
        prompt_tokens = count_tokens(prompt)
        total += prompt_tokens
        limit = min(_room(prompt_tokens, context_tokens), request.max_tokens or _COMPLETION_TOKENS)
        for index in range(request.choices):
            tokens, reason = _generated(request, prompt, index, limit)
            tokens, reason = _limited(tokens, reason, limit)
            choices.append(
                PlannedChoice(
                    tokens=tuple(tokens),
                    finish_reason=reason,
                    prompt_tokens=prompt_tokens if index == 0 else 0,
                    echo=prompt if request.echo else "",
                )
            )
    return _planned(request, choices, total, is_chat=False)


def conversation_text(messages: Sequence[Message]) -> str:
    """Return a conversation as the text that is counted.

    Raises:
        InvalidRequestError: a part is no text.
    """
    lines = []
    for position, message in enumerate(messages):
        content = message.content
        if isinstance(content, list):
            content = "".join(_part_text(part, position) for part in content)
        calls = "".join(
            f" {call.function.name}{call.function.arguments}"
            for call in message.tool_calls or ()
            if call.function is not None
        )
        lines.append(f"{message.role}: {content or ''}{calls}\n")
    return "".join(lines)


def texts_of(inputs: Inputs, param: str) -> list[str]:
    """Return the texts in a prompt or an input, at least one.

    Raises:
        InvalidRequestError: it is empty, or mixes texts and token ids.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    elif inputs and all(isinstance(entry, int) for entry in inputs):
        inputs = [[entry for entry in inputs if isinstance(entry, int)]]
    texts = []
    for entry in inputs:
        if isinstance(entry, int):
            raise InvalidRequestError("texts and token ids are mixed; use one", param=param)
        texts.append(entry if isinstance(entry, str) else decode_tokens(entry))
    if not texts or not all(texts):
        raise InvalidRequestError(f"{param} is empty; give at least one token", param=param)
    return texts


def check_context(prompt_tokens: int, limit_tokens: int, reserved_tokens: int = 0) -> None:
    """Check that a prompt and what is reserved for the answer fit.

    Raises:
        ContextLengthError: it does not; the error has both numbers.
    """
    if prompt_tokens > limit_tokens - reserved_tokens:
        raise ContextLengthError(
            f"the prompt has {prompt_tokens} tokens and the model's context is {limit_tokens}",
            prompt_tokens=prompt_tokens,
            limit_tokens=limit_tokens,
        )


def _part_text(part: Part, position: int) -> str:
    match part.type:
        case "text":
            return part.text or ""
        case "refusal":
            return part.refusal or ""
        case _:
            raise InvalidRequestError(
                f"this model takes text alone, not {part.type[:50]!r}",
                param=f"messages[{position}].content",
            )


def _room(prompt_tokens: int, context_tokens: int) -> int:
    # A prompt that fills the context leaves no token for the answer.
    check_context(prompt_tokens, context_tokens, reserved_tokens=1)
    return context_tokens - prompt_tokens


def _generated(request: Generation, prompt: str, index: int, limit: int) -> tuple[list[str], str]:
    tokens = answer_tokens(prompt, index)
    if request.ignore_eos:
        # One more than there is room for, so that the limit is what ends it.
        tokens = list(itertools.islice(itertools.cycle(tokens), limit + 1))
    tokens, _ = cut_at_stop(tokens, request.stops)
    return tokens, "stop"


def _limited(tokens: list[str], reason: str, limit: int) -> tuple[list[str], str]:
    return (tokens[:limit], "length") if len(tokens) > limit else (tokens, reason)


def _forced_tool(request: ChatRequest) -> Tool | None:
    """Return the tool that must be called; `None` when none must."""
    choice = request.tool_choice
    if choice is None or choice in ("none", "auto"):
        return None
    tools = {tool.function.name: tool for tool in request.tools or () if tool.function}
    if not tools:
        raise InvalidRequestError("tool_choice needs tools; give at least one", param="tools")
    if not isinstance(choice, ToolChoice):
        return next(iter(tools.values()))
    name = _chosen_name(choice)
    if name is None:
        return None
    if name not in tools:
        raise InvalidRequestError(
            f"there is no tool {name[:200]!r}; tools are {', '.join(tools)}", param="tool_choice"
        )
    return tools[name]


def _chosen_name(choice: ToolChoice) -> str | None:
    if choice.function is not None:
        return choice.function.name
    allowed = choice.allowed_tools
    if allowed is None:
        raise InvalidRequestError("tool_choice names no tool", param="tool_choice")
    if allowed.mode == "auto":
        return None
    return next((tool.function.name for tool in allowed.tools if tool.function), None)


def _form(request: ChatRequest, tool: Tool | None) -> str | None:
    """Return the JSON that the answer must be; `None` when it may be any text."""
    if tool is not None:
        schema = tool.function.parameters if tool.function else None
        return encode_json(smallest_instance(schema or {"type": "object"})).decode()
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "{}"
    if wanted.json_schema is None:
        raise InvalidRequestError(
            "response_format json_schema needs a schema", param="response_format.json_schema"
        )
    return encode_json(smallest_instance(wanted.json_schema.schema)).decode()


def _planned(
    request: Generation, choices: list[PlannedChoice], prompt_tokens: int, *, is_chat: bool
) -> Plan:
    options = request.stream_options
    return Plan(
        choices=tuple(choices),
        prompt_tokens=prompt_tokens,
        is_chat=is_chat,
        has_usage=bool(options and options.include_usage),
        has_continuous_usage=bool(options and options.continuous_usage_stats),
    )
