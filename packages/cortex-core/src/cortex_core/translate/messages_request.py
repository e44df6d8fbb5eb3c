"""A request for a message, as a chat completion request.

What each field comes to is listed in the reference page on translating messages, which a test
compares with the fields.
"""

import msgspec

from cortex_core.errors import InvalidRequestError, UnsupportedThreadError
from cortex_core.translate.messages_tools import tools_of
from cortex_core.translate.messages_turns import conversation_of
from cortex_core.translate.target import PdfReader, Target, ToChat, answer_tokens
from cortex_core.wire.anthropic.request import MessagesRequest, OutputFormat, Thinking
from cortex_core.wire.openai.chat import ChatMessage, ChatRequest, JsonSchema, ResponseFormat
from cortex_core.wire.openai.envelope import StreamOptions

MIN_BUDGET_TOKENS = 1024
"""Least budget for thinking; Anthropic's number."""

DEFAULT_EFFORT = "medium"
"""Switches thinking on where the caller wants it and does not say how much."""

EFFORTS = ("low", "medium", "high", "xhigh", "max")

SCHEMA_NAME = "output"
"""Chat wants a name for a schema, messages have none."""


def messages_to_chat(
    request: MessagesRequest, target: Target, *, read_pdf: PdfReader | None = None
) -> ToChat:
    """Return `request` as a chat completion request.

    Args:
        request: as the caller wrote it; without `max_tokens` it is meant to be counted.
        target: the model that it goes to.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.

    Raises:
        InvalidRequestError: `param` names what cannot be put to an engine.
        UnsupportedThreadError: only a part of the conversation was sent.
    """
    _refuse_hosted(request)
    _check_sampling(request)
    conversation = conversation_of(request, read_pdf)
    tools = tools_of(request)
    thinking = _thinking(request, target)
    form = _format(request)
    prefill = _is_prefilled(conversation.messages)
    if prefill:
        _check_prefill(
            is_formed=form is not None,
            is_forced=tools.choice not in _FREE_CHOICES,
            is_thought_about=bool(request.thinking) and thinking.effort not in _NO_EFFORT,
        )
    chat = ChatRequest(
        model=target.model,
        messages=conversation.messages,
        max_completion_tokens=_max_tokens(request, target),
        stream=request.stream,
        stream_options=_STREAM_OPTIONS if request.stream else None,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences or None,
        tools=tools.tools or None,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
        response_format=form,
        reasoning_effort=thinking.effort,
        thinking_token_budget=thinking.budget_tokens,
        user=request.metadata.user_id if request.metadata else None,
        continue_final_message=True if prefill else None,
        add_generation_prompt=False if prefill else None,
    )
    ignored = (*conversation.ignored, *tools.ignored, *_without_meaning(request))
    return ToChat(chat=chat, ignored=ignored)


_STREAM_OPTIONS = StreamOptions(include_usage=True, continuous_usage_stats=True)
"""With the second, an engine tells the prompt's size in its first chunk."""

_NO_EFFORT = (None, "none")

_FREE_CHOICES = (None, "auto", "none")


class _Effort(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None = None
    budget_tokens: int | None = None


def _refuse_hosted(request: MessagesRequest) -> None:
    """Refuse what only the hosted service has, and what would change the answer's meaning."""
    if request.thread is not None:
        raise UnsupportedThreadError(
            "threads are not kept here; send the whole conversation", param="thread"
        )
    for name in ("container", "mcp_servers", "compaction"):
        if bytes(getattr(request, name)) not in (b"", b"null", b"[]"):
            raise InvalidRequestError(f"{name} is not supported", param=name)


def _without_meaning(request: MessagesRequest) -> list[str]:
    """Return the fields that mean nothing to an engine and whose loss changes no answer."""
    names = ("context_management", "fallbacks")
    return [name for name in names if bytes(getattr(request, name)) not in (b"", b"null")]


def _check_sampling(request: MessagesRequest) -> None:
    if request.temperature is not None and not 0 <= request.temperature <= 1:
        raise InvalidRequestError("temperature must be from 0 to 1", param="temperature")
    if request.top_p is not None and not 0 <= request.top_p <= 1:
        raise InvalidRequestError("top_p must be from 0 to 1", param="top_p")
    if request.top_k is not None and request.top_k < 0:
        raise InvalidRequestError("top_k must not be negative", param="top_k")
    if request.max_tokens is not None and request.max_tokens < 0:
        raise InvalidRequestError("max_tokens must not be negative", param="max_tokens")
    for position, stop in enumerate(request.stop_sequences or ()):
        if not stop.strip():
            raise InvalidRequestError(
                "stop sequences must have more than white space",
                param=f"stop_sequences.{position}",
            )


def _max_tokens(request: MessagesRequest, target: Target) -> int | None:
    if request.max_tokens is None:
        return None
    # An engine cannot generate nothing: a request for no tokens only fills its cache.
    return answer_tokens(max(1, request.max_tokens), target.limit)


def _thinking(request: MessagesRequest, target: Target) -> _Effort:
    thinking = request.thinking
    _check_thinking(thinking, request.max_tokens)
    effort = request.output_config.effort if request.output_config else None
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequestError(
            f"effort {effort!r} is not one of {', '.join(EFFORTS)}", param="output_config.effort"
        )
    known = target.capabilities
    if known is not None and not known.reasoning:
        if thinking is not None and thinking.type == "enabled":
            raise InvalidRequestError(
                f"{target.model!r} has no thinking; leave thinking out", param="thinking"
            )
        return _Effort()
    if thinking is None or thinking.type == "disabled":
        # A stranger's server may not know the word, and is told nothing it was not asked.
        return _Effort(effort=None if known is None else "none")
    return _Effort(
        effort=effort or DEFAULT_EFFORT,
        budget_tokens=None if known is None else _budget(request, target),
    )


def _budget(request: MessagesRequest, target: Target) -> int | None:
    """Return the budget for thinking, which leaves a token at least of those that can come."""
    wanted = request.thinking.budget_tokens if request.thinking else None
    longest = _max_tokens(request, target)
    if wanted is None or longest is None:
        return wanted
    return min(wanted, longest - 1)


def _check_thinking(thinking: Thinking | None, max_tokens: int | None) -> None:
    if thinking is None:
        return
    if thinking.type not in ("enabled", "adaptive", "between_tools", "disabled"):
        raise InvalidRequestError(
            f"thinking {thinking.type!r} is not one of enabled, adaptive and disabled",
            param="thinking.type",
        )
    budget = thinking.budget_tokens
    if thinking.type != "enabled":
        return
    if budget is None or budget < MIN_BUDGET_TOKENS:
        raise InvalidRequestError(
            f"thinking needs a budget of {MIN_BUDGET_TOKENS} tokens at least",
            param="thinking.budget_tokens",
        )
    if max_tokens is not None and budget >= max_tokens:
        raise InvalidRequestError(
            "thinking's budget must be less than max_tokens", param="thinking.budget_tokens"
        )


def _format(request: MessagesRequest) -> ResponseFormat | None:
    config = request.output_config
    form, path = (config.format if config else None), "output_config.format"
    if form is None:
        form, path = request.output_format, "output_format"
    if form is None:
        return None
    return _schema(form, path)


def _schema(form: OutputFormat, path: str) -> ResponseFormat:
    if form.type != "json_schema" or form.schema is None:
        raise InvalidRequestError("a format is of type json_schema and has a schema", param=path)
    schema = JsonSchema(name=SCHEMA_NAME, schema=form.schema, strict=True)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _check_prefill(*, is_formed: bool, is_forced: bool, is_thought_about: bool) -> None:
    if is_formed or is_forced or is_thought_about:
        raise InvalidRequestError(
            "an answer that is begun cannot be thought about, be of a given form or be a call; "
            "let the last message be the user's",
            param="messages",
        )


def _is_prefilled(messages: tuple[ChatMessage, ...]) -> bool:
    """Whether the last message is the beginning of the answer."""
    return bool(messages) and messages[-1].role == "assistant" and bool(messages[-1].content)
