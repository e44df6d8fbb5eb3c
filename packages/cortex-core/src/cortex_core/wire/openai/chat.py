"""Chat completions: the dialect that engines speak, and into which the others are translated.

Sources: OpenAI API reference, "Create chat completion" and "The chat completion chunk object";
vLLM's documentation, "OpenAI-Compatible Server", for the fields marked as vLLM's (both read
November 2026). Unknown fields are ignored on read; defaults are left out on write.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from cortex_core.wire.openai.envelope import StreamOptions


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text within a message."""

    text: str


class ImageUrl(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an image is."""

    url: str
    """`https:` or `data:`."""
    detail: str | None = None


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image within a message."""

    image_url: ImageUrl


class InputAudio(msgspec.Struct, frozen=True, kw_only=True):
    """Sound as base64."""

    data: str
    format: str


class AudioPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_audio"):
    """Sound within a message."""

    input_audio: InputAudio


class FileContent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file, inline or by id."""

    file_data: str | None = None
    """A `data:` URL or bare base64."""
    file_id: str | None = None
    filename: str | None = None


class FilePart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """A file within a message."""

    file: FileContent


class RefusalPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """An assistant's refusal, as history."""

    refusal: str


Part = TextPart | ImagePart | AudioPart | FilePart | RefusalPart

Content = str | tuple[Part, ...] | None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """The function that a call names, with its arguments."""

    name: str
    arguments: str = ""
    """A JSON object as text; empty means none."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a whole assistant message."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of any role.

    `content` is always written: engines want the key even where it is null.
    """

    role: str
    content: Content
    name: str | None = None
    reasoning: str | None = None
    """An assistant's thoughts, in vLLM's spelling."""
    reasoning_content: str | None = None
    """The same in the spelling of other engines and of clients."""
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    """Legacy form of a single call."""


class FunctionDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    """JSON schema of the arguments, an object."""
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `tools`."""

    function: FunctionDefinition
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class NamedToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`tool_choice` that asks for one function."""

    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Form that an answer must have."""

    name: str
    schema: Mapping[str, object] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`response_format`: `text`, `json_object` or `json_schema`."""

    type: str
    json_schema: JsonSchema | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of `POST /v1/chat/completions`, as far as another dialect can say it."""

    model: str
    messages: tuple[ChatMessage, ...]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    """Older name of `max_completion_tokens`, which wins."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """vLLM's."""
    min_p: float | None = None
    """vLLM's."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    """vLLM's."""
    seed: int | None = None
    logit_bias: Mapping[str, float] | None = None
    n: int | None = None
    stop: str | tuple[str, ...] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: str | NamedToolChoice | None = None
    """`none`, `auto`, `required`, or one function."""
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    """`none` to `max`; vLLM hands it to the template and derives `enable_thinking` from it."""
    thinking_token_budget: int | None = None
    """vLLM's: tokens of thinking before an answer is forced."""
    include_reasoning: bool | None = None
    """vLLM's."""
    chat_template_kwargs: Mapping[str, object] | None = None
    """vLLM's."""
    add_generation_prompt: bool | None = None
    """vLLM's; False together with `continue_final_message`."""
    continue_final_message: bool | None = None
    """vLLM's: the last message, an assistant's, is the beginning of the answer."""
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Mapping[str, object] | None = None
    store: bool | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    modalities: tuple[str, ...] | None = None
    audio: Mapping[str, object] | None = None
    functions: tuple[FunctionDefinition, ...] | None = None
    """Legacy form of `tools`."""
    function_call: str | NamedFunction | None = None
    """Legacy form of `tool_choice`."""
    # Read only to see whether they are there.
    structured_outputs: msgspec.Raw = msgspec.Raw()
    """vLLM's."""
    web_search_options: msgspec.Raw = msgspec.Raw()


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int | None = None


class ChatUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`usage`, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token with its probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top_logprobs: tuple["TokenLogprob", ...] = ()


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """`logprobs` of a choice."""

    content: tuple[TokenLogprob, ...] | None = None


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a call: its name, a fragment of its arguments, or both."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of one of the calls of an answer; `id` and name come in a call's first piece."""

    index: int | None = None
    """Which call of the answer; missing in the whole answers of some engines."""
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to a choice, or the message of a whole answer."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None
    function_call: FunctionDelta | None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a chunk (`delta`) or of a whole answer (`message`)."""

    index: int = 0
    delta: ChatDelta | None = None
    message: ChatDelta | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM's: the stop string that matched, or the id of the token that ended the answer."""
    logprobs: Logprobs | None = None


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk or a whole answer, as it is read."""

    id: str | None = None
    choices: tuple[ChatChoice, ...] = ()
    object: str | None = None
    """`error` in streams of old engines, with the `message` beside it."""
    message: str = ""
    usage: ChatUsage | None = None
    # Beside `None` msgspec takes `Raw` for nothing at all.
    error: msgspec.Raw = msgspec.Raw()
    """The error object of a stream that broke; empty when there is none."""


CHAT_REQUEST_DECODER = msgspec.json.Decoder(ChatRequest)

CHAT_ANSWER_DECODER = msgspec.json.Decoder(ChatAnswer)
