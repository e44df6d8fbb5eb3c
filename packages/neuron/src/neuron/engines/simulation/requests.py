"""What the simulated engine reads of a request; every other field is ignored.

Source: OpenAI API reference, "Chat completions", "Completions", "Embeddings", and vLLM's
`/tokenize` and `/detokenize` (all read November 2026).
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex_core.wire.openai.envelope import StreamOptions

Positive = Annotated[int, Meta(ge=1)]
Copies = Annotated[int, Meta(ge=1, le=128)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Tokens = list[int]
Inputs = str | list[str | int | Tokens]
"""A text, texts, token ids, or lists of token ids."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One content part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in the history."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call in the history."""

    id: str = ""
    function: FunctionCall | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool is called, and with which arguments."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that may be called; only functions can."""

    type: str = "function"
    function: Function | None = None


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    """The function of a named tool choice."""

    name: str


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of an `allowed_tools` choice."""

    mode: Literal["auto", "required"]
    tools: list["ToolChoice"]


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A tool choice that is more than a word."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A named schema."""

    name: str
    schema: Mapping[str, object] = msgspec.field(default_factory=dict)


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and completions have in common."""

    model: str
    max_tokens: Positive | None = None
    n: Copies | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    """vLLM's: go on until `max_tokens`, whatever the natural end."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None

    @property
    def choices(self) -> int:
        """Answers wanted for each prompt."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """Strings before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Generation, frozen=True, kw_only=True):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    chat_template_kwargs: Mapping[str, object] | None = None
    """vLLM's; `enable_thinking` alone is read."""
    thinking_token_budget: Annotated[int, Meta(ge=0)] | None = None
    """vLLM's: most tokens of reasoning."""

    @property
    def thinks(self) -> bool:
        """Whether reasoning comes before the answer."""
        if self.reasoning_effort is not None:
            return self.reasoning_effort != "none"
        return (self.chat_template_kwargs or {}).get("enable_thinking") is True


class CompletionRequest(Generation, frozen=True, kw_only=True):
    """Body of `/v1/completions`."""

    prompt: Inputs
    echo: bool | None = None
    logprobs: int | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/v1/embeddings`."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/tokenize`: a prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/detokenize`."""

    tokens: Tokens
    model: str | None = None


CHAT_DECODER = msgspec.json.Decoder(ChatRequest)
COMPLETION_DECODER = msgspec.json.Decoder(CompletionRequest)
EMBEDDING_DECODER = msgspec.json.Decoder(EmbeddingRequest)
TOKENIZE_DECODER = msgspec.json.Decoder(TokenizeRequest)
DETOKENIZE_DECODER = msgspec.json.Decoder(DetokenizeRequest)
