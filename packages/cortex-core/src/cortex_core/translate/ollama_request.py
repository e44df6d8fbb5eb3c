"""From Ollama's requests to chat completion requests."""

from collections.abc import Sequence

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.translate.target import Target, ToChat
from cortex_core.wire.ollama import OllamaCall, OllamaMessage, OllamaRequest
from cortex_core.wire.openai import chat
from cortex_core.wire.openai.envelope import StreamOptions

_SAME = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
_OPTIONS = {name: name for name in (*_SAME, "seed", "stop")} | {
    "num_predict": "max_completion_tokens",
    "repeat_penalty": "repetition_penalty",
}
"""What of `options` concerns sampling; the others are about how Ollama runs a model."""

_IMAGE_TYPES = {"iVBOR": "png", "R0lGO": "gif", "UklGR": "webp"}
"""How files of each type begin in base64; what begins otherwise is taken for JPEG."""

_THINK = {True: "medium", False: "none", None: None, "": None}


def ollama_to_chat(request: OllamaRequest, target: Target) -> ToChat:
    """Return a request of `/api/chat`, or of `/api/generate`, as a chat completion request.

    Raises:
        InvalidRequestError: it says what cannot be said to an engine that chats.
    """
    for name in ("raw", "suffix", "template", "context"):
        if getattr(request, name):
            text = f"{name} is not taken: prompts are written by the model's own template"
            raise InvalidRequestError(text, param=name)
    given = {name: value for name, value in (request.options or {}).items() if value is not None}
    if _is_negative(given.get("seed")):
        del given["seed"]
    if _is_negative(given.get("num_predict")) or given.get("num_predict") == 0:
        del given["num_predict"]
    sampling = {_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS}
    try:
        chosen = msgspec.convert({"model": "", "messages": (), **sampling}, chat.ChatRequest)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"options: {error}", param="options") from None
    messages = _messages(_asked_messages(request))
    # Ollama has a model go on with an answer that the history ends in.
    is_prefilled = messages[-1].role == "assistant" and not messages[-1].tool_calls
    is_stream = request.stream is not False
    result = msgspec.structs.replace(
        chosen,
        model=target.model,
        messages=messages,
        stream=is_stream or None,
        stream_options=StreamOptions(include_usage=True) if is_stream else None,
        tools=request.tools or None,
        response_format=_format(request),
        reasoning_effort=_THINK.get(request.think, request.think),
        add_generation_prompt=False if is_prefilled else None,
        continue_final_message=is_prefilled or None,
    )
    ignored = [f"options.{name}" for name in given if name not in _OPTIONS]
    ignored += ["logprobs"] if request.logprobs else []
    return ToChat(chat=result, ignored=tuple(ignored))


def _is_negative(value: object) -> bool:
    return isinstance(value, int | float) and value < 0


def _asked_messages(request: OllamaRequest) -> Sequence[OllamaMessage]:
    if request.messages is not None:
        return request.messages
    system = OllamaMessage(role="system", content=request.system)
    return (system, OllamaMessage(role="user", content=request.prompt, images=request.images))


def _messages(asked: Sequence[OllamaMessage]) -> tuple[chat.ChatMessage, ...]:
    """Return the messages: one for all systems, first, and results with the ids of their calls."""
    systems = [message.content for message in asked if message.role == "system" and message.content]
    messages = [chat.ChatMessage(role="system", content="\n\n".join(systems))] if systems else []
    waiting: list[chat.ToolCall] = []
    calls = 0
    for position, message in enumerate(asked):
        if message.role == "system":
            continue
        # The same history gives the same ids, on which prefix caches depend.
        made = [_call(call, f"call_{calls + n}") for n, call in enumerate(message.tool_calls or ())]
        calls += len(made)
        waiting += made
        answered = _answered(message, waiting, position) if message.role == "tool" else None
        if answered is not None:
            waiting.remove(answered)
        messages.append(
            chat.ChatMessage(
                role=message.role,
                content=_content(message),
                reasoning=message.thinking or None,
                tool_calls=tuple(made) or None,
                tool_call_id=None if answered is None else answered.id,
            )
        )
    if len(messages) == bool(systems):
        raise InvalidRequestError("give a message beside the system's", param="messages")
    return tuple(messages)


def _call(call: OllamaCall, made_id: str) -> chat.ToolCall:
    arguments = encode_json(call.function.arguments).decode()
    function = chat.FunctionCall(name=call.function.name, arguments=arguments)
    return chat.ToolCall(id=call.id or made_id, function=function)


def _content(message: OllamaMessage) -> chat.Content:
    if not message.images:
        return message.content or (None if message.tool_calls else "")
    texts = [chat.TextPart(text=message.content)] if message.content else []
    urls = (
        f"data:image/{_IMAGE_TYPES.get(data[:5], 'jpeg')};base64,{data}" for data in message.images
    )
    return (*texts, *(chat.ImagePart(image_url=chat.ImageUrl(url=url)) for url in urls))


def _answered(
    message: OllamaMessage, waiting: Sequence[chat.ToolCall], position: int
) -> chat.ToolCall:
    """Return the call of a result: by id where it has one, else by name, else the first."""
    for call in waiting:
        if message.tool_call_id:
            if call.id == message.tool_call_id:
                return call
        elif message.tool_name in (None, "", call.function.name):
            return call
    where = f"messages.{position}"
    text = f"{where}: there is no call before it that it could be the result of"
    raise InvalidRequestError(text, param=where)


def _format(request: OllamaRequest) -> chat.ResponseFormat | None:
    if not request.format:
        return None
    if request.format == "json":
        return chat.ResponseFormat(type="json_object")
    if isinstance(request.format, str):
        raise InvalidRequestError("format is neither 'json' nor a schema", param="format")
    schema = chat.JsonSchema(name="answer", schema=request.format, strict=True)
    return chat.ResponseFormat(type="json_schema", json_schema=schema)
