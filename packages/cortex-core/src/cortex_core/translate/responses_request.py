"""A request for a response, as a chat completion request.

What each field comes to is listed in the reference page on responses.
"""

from collections.abc import Sequence

from cortex_core.errors import InvalidRequestError
from cortex_core.translate.responses_tools import tools_of
from cortex_core.translate.responses_turns import Turns
from cortex_core.translate.target import PdfReader, Target, ToChat, answer_tokens
from cortex_core.wire.openai.chat import ChatMessage, ChatRequest, JsonSchema, ResponseFormat
from cortex_core.wire.openai.envelope import StreamOptions
from cortex_core.wire.responses.items import Item
from cortex_core.wire.responses.request import ResponsesRequest, TextFormat

LOGPROBS = "message.output_text.logprobs"
"""Entry of `include` that asks for the probabilities of tokens."""

_STREAM_OPTIONS = StreamOptions(include_usage=True, continuous_usage_stats=True)


def responses_to_chat(
    request: ResponsesRequest,
    items: Sequence[Item],
    target: Target,
    *,
    history: Sequence[Item] = (),
    read_pdf: PdfReader | None = None,
) -> ToChat:
    """Return `request` as a chat completion request.

    Args:
        request: as the caller wrote it.
        items: the request's own input.
        target: the model that it goes to.
        history: what was said before, and kept.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.

    Raises:
        InvalidRequestError: `param` names what cannot be put to an engine.
    """
    _check(request)
    turns = Turns(request.instructions, read_pdf)
    messages = _messages(turns, history, items)
    tools = tools_of(request)
    can_think = target.capabilities is None or target.capabilities.reasoning
    effort = request.reasoning.effort if request.reasoning else None
    wants_logprobs = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    chat = ChatRequest(
        model=target.model,
        messages=messages,
        max_completion_tokens=answer_tokens(request.max_output_tokens, target.limit),
        stream=request.stream,
        stream_options=_STREAM_OPTIONS if request.stream else None,
        temperature=request.temperature,
        top_p=request.top_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logprobs=True if wants_logprobs else None,
        top_logprobs=request.top_logprobs or None,
        tools=tools.tools or None,
        tool_choice=tools.choice,
        parallel_tool_calls=request.parallel_tool_calls if tools.tools else None,
        response_format=_format(request),
        reasoning_effort=effort if can_think else None,
        user=request.user or request.safety_identifier,
    )
    ignored = [*turns.ignored, *tools.ignored, *_without_meaning(request)]
    if effort is not None and not can_think:
        ignored.append("reasoning.effort")
    return ToChat(chat=chat, ignored=tuple(ignored))


def _messages(
    turns: Turns, history: Sequence[Item], items: Sequence[Item]
) -> tuple[ChatMessage, ...]:
    for item in history:
        # Nobody can mend what was said before, so that no place in it is named.
        turns.add(item, "input")
    for number, item in enumerate(items):
        turns.add(item, f"input.{number}")
    messages = turns.finish()
    if not messages:
        raise InvalidRequestError("there must be something in the input", param="input")
    return messages


def _check(request: ResponsesRequest) -> None:
    if bytes(request.prompt) not in (b"", b"null"):
        raise InvalidRequestError("prompt templates are not kept here", param="prompt")
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise InvalidRequestError("max_output_tokens must be positive", param="max_output_tokens")
    if request.max_tool_calls is not None and request.max_tool_calls < 1:
        raise InvalidRequestError("max_tool_calls must be positive", param="max_tool_calls")
    if request.truncation not in (None, "auto", "disabled"):
        raise InvalidRequestError("truncation is auto or disabled", param="truncation")


def _without_meaning(request: ResponsesRequest) -> list[str]:
    """Return the fields that the caller wrote and that mean nothing to an engine."""
    ignored = []
    if request.truncation == "auto":
        # Only the engine can count, and it refuses what is too long rather than to cut it.
        ignored.append("truncation")
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        ignored.append("text.verbosity")
    if bytes(request.context_management) not in (b"", b"null", b"[]"):
        ignored.append("context_management")
    return ignored


def _format(request: ResponsesRequest) -> ResponseFormat | None:
    form = request.text.format if request.text else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return ResponseFormat(type="json_object")
    if form.type == "json_schema" and form.schema is not None:
        return ResponseFormat(type="json_schema", json_schema=_schema(form))
    raise InvalidRequestError(
        f"the format {form.type!r} is not one of text, json_object and json_schema with a schema",
        param="text.format",
    )


def _schema(form: TextFormat) -> JsonSchema:
    return JsonSchema(
        name=form.name or "output",
        schema=form.schema,
        description=form.description,
        strict=form.strict,
    )
