"""What the simulated engine will answer, decided before a single token is due."""

import itertools
import re
from collections.abc import Iterator, Sequence

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import ContextLengthError, InvalidRequestError
from neuron.engines.simulation.instance import smallest_instance
from neuron.engines.simulation.planned import Kind, Piece, Plan, PlannedChoice
from neuron.engines.simulation.requests import (
    ChatRequest,
    CompletionRequest,
    Function,
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


def plan_chat(request: ChatRequest, context_tokens: int) -> Plan:
    """Decide the answer to a conversation.

    Raises:
        InvalidRequestError: a field cannot be honoured; `param` names it.
        ContextLengthError: the conversation leaves no room for an answer.
    """
    if request.logprobs:
        raise InvalidRequestError("this model has no log probabilities", param="logprobs")
    prompt = prompt_text(request)
    prompt_tokens = count_tokens(prompt)
    limit = _room(prompt_tokens, context_tokens)
    most = min(limit, request.max_completion_tokens or request.max_tokens or limit)
    tools = _called_tools(request)
    form = _form(request)
    choices = []
    for index in range(request.choices):
        thoughts = _reasoning(request, prompt, index)
        if tools:
            answer, reason, stop = _calls(tools), _reason_of_calls(request), None
        elif form is not None:
            answer, reason, stop = [_piece(Kind.TEXT, tokens_of(form))], "stop", None
        else:
            tokens, reason, stop = _generated(request, prompt, index, most)
            answer = [_piece(Kind.TEXT, tokens)]
        choices.append(
            _limited(
                PlannedChoice(
                    pieces=(*thoughts, *answer),
                    finish_reason=reason,
                    stop_reason=stop,
                    prompt_tokens=prompt_tokens if index == 0 else 0,
                ),
                most,
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
            tokens, reason, stop = _generated(request, prompt, index, limit)
            choice = PlannedChoice(
                pieces=(_piece(Kind.TEXT, tokens),),
                finish_reason=reason,
                stop_reason=stop,
                prompt_tokens=prompt_tokens if index == 0 else 0,
                echo=prompt if request.echo else "",
            )
            choices.append(_limited(choice, limit))
    return _planned(request, choices, total, is_chat=False)


def prompt_text(request: ChatRequest) -> str:
    """Return tools and conversation as the text that is counted.

    Raises:
        InvalidRequestError: a part of a message is no text.
    """
    tools = request.tools if request.tool_choice != "none" else None
    return conversation_text(request.messages, tools)


def conversation_text(messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> str:
    """Return a conversation, after the tools that it may use, as the text that is counted.

    Raises:
        InvalidRequestError: a part is no text.
    """
    lines = [f"tools: {encode_json(tools).decode()}\n"] if tools else []
    for position, message in enumerate(messages):
        content = _content_text(message, position)
        calls = "".join(
            f" {call.function.name}{call.function.arguments}"
            for call in message.tool_calls or ()
            if call.function is not None
        )
        lines.append(f"{message.role}: {content}{calls}\n")
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


def _content_text(message: Message, position: int) -> str:
    if isinstance(message.content, list):
        return "".join(_part_text(part, position) for part in message.content)
    return message.content or ""


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


def _piece(kind: Kind, tokens: Sequence[str], tool: str = "") -> Piece:
    return Piece(kind=kind, tokens=tuple(tokens), tool=tool)


def _generated(
    request: Generation, prompt: str, index: int, limit: int
) -> tuple[list[str], str, str | None]:
    """Return text, why it ends, and the stop string that ends it."""
    tokens = answer_tokens(prompt, index)
    if request.ignore_eos:
        # One more than there is room for, so that the limit is what ends it.
        tokens = list(itertools.islice(itertools.cycle(tokens), limit + 1))
    tokens, stop = cut_at_stop(tokens, request.stops)
    return tokens, "stop", stop


def _reasoning(request: ChatRequest, prompt: str, index: int) -> list[Piece]:
    budget = request.thinking_token_budget
    if not request.thinks or budget == 0:
        return []
    return [_piece(Kind.REASONING, answer_tokens(f"{prompt}reasoning: ", index)[:budget])]


def _limited(choice: PlannedChoice, limit: int) -> PlannedChoice:
    """Return a choice with its first `limit` tokens."""
    if choice.made_tokens <= limit:
        return choice
    return msgspec.structs.replace(
        choice, pieces=tuple(_first(choice.pieces, limit)), finish_reason="length", stop_reason=None
    )


def _first(pieces: Sequence[Piece], limit: int) -> Iterator[Piece]:
    for piece in pieces:
        if limit > 0:
            yield msgspec.structs.replace(piece, tokens=piece.tokens[:limit])
        limit -= len(piece.tokens)


def _called_tools(request: ChatRequest) -> list[Tool]:
    """Return the tools that are called, in the order of the calls; empty when none is."""
    forced = _forced_tool(request)
    if forced is not None:
        return [forced]
    last = request.messages[-1]
    if request.tool_choice == "none" or last.role != "user":
        return []
    text = _content_text(last, len(request.messages) - 1)
    named = {
        tool.function.name: tool
        for tool in request.tools or ()
        if tool.function is not None and _names(text, tool.function)
    }
    return list(named.values())[: 1 if request.parallel_tool_calls is False else None]


def _names(text: str, function: Function) -> bool:
    return re.search(rf"(?<!\w){re.escape(function.name)}(?!\w)", text) is not None


def _calls(tools: Sequence[Tool]) -> list[Piece]:
    functions = [tool.function for tool in tools if tool.function is not None]
    return [
        _piece(
            Kind.CALL,
            tokens_of(
                encode_json(smallest_instance(function.parameters or {"type": "object"})).decode()
            ),
            function.name,
        )
        for function in functions
    ]


def _reason_of_calls(request: ChatRequest) -> str:
    # As vLLM has it: a tool that was named by the caller ends with "stop".
    return "stop" if isinstance(request.tool_choice, ToolChoice) else "tool_calls"


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


def _form(request: ChatRequest) -> str | None:
    """Return the JSON that the answer must be; `None` when it may be any text."""
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
