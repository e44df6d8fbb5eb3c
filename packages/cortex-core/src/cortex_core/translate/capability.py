"""What a request needs a model to be able to do, and the refusal when it is not."""

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Capabilities, Route
from cortex_core.wire.openai.chat import AudioPart, ChatRequest, ImagePart


class Asks(msgspec.Struct, frozen=True, kw_only=True):
    """What a request needs."""

    vision: bool = False
    """An image is in its messages."""
    audio: bool = False
    """Sound is in its messages."""
    tools: bool = False
    """Tools are offered, and may be called."""
    reasoning: bool = False
    """Reasoning is budgeted; a wish for more or less of it is not a need."""


class FieldNames(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the fields that a refusal may be about, in one dialect."""

    prompt: str = "messages"
    tools: str = "tools"
    reasoning: str = "thinking_token_budget"


CHAT_FIELDS = FieldNames()
MESSAGES_FIELDS = FieldNames(reasoning="thinking")
RESPONSES_FIELDS = FieldNames(prompt="input", reasoning="reasoning")


_KINDS = {
    Route.COMPLETIONS: ("completions", "complete text"),
    Route.EMBEDDINGS: ("embeddings", "embed"),
    Route.RERANK: ("scoring", "rank"),
    Route.SCORE: ("scoring", "score"),
}
"""What a model must be able to do for a path, and the word for it."""


def asks_of(chat: ChatRequest) -> Asks:
    """Return what `chat` needs."""
    kinds = {
        type(part)
        for message in chat.messages
        if isinstance(message.content, tuple)
        for part in message.content
    }
    return Asks(
        vision=ImagePart in kinds,
        audio=AudioPart in kinds,
        tools=bool(chat.tools) and chat.tool_choice != "none",
        reasoning=bool(chat.thinking_token_budget),
    )


def refuse_unable(
    asked: ChatRequest | Asks,
    capabilities: Capabilities | None,
    *,
    fields: FieldNames = CHAT_FIELDS,
) -> None:
    """Do nothing when the model can do what is asked.

    Args:
        asked: the request, or what is known to be asked by it.
        capabilities: of the model; `None` refuses nothing.
        fields: names in the caller's dialect, for `param`.

    Raises:
        InvalidRequestError: it cannot.
    """
    if capabilities is None:
        return
    if not capabilities.chat:
        raise InvalidRequestError("the model does not chat; ask one that does", param="model")
    asks = asked if isinstance(asked, Asks) else asks_of(asked)
    if asks.vision and not capabilities.vision:
        raise InvalidRequestError(
            "the model does not see; leave the images out, or ask a model that takes them",
            param=fields.prompt,
        )
    if asks.audio and not capabilities.audio:
        raise InvalidRequestError(
            "the model does not hear; leave the sound out, or ask a model that takes it",
            param=fields.prompt,
        )
    if asks.tools and not capabilities.tools:
        raise InvalidRequestError(
            "the model's tool calls cannot be read; leave the tools out, choose `none`, "
            "or have the model loaded with a tool parser",
            param=fields.tools,
        )
    if asks.reasoning and not capabilities.reasoning:
        # Claude Code asks again without it when it reads this word.
        raise InvalidRequestError(
            "the model's thinking cannot be told from its text, so it has no budget",
            param=fields.reasoning,
        )


def refuse_other_kind(path: str, capabilities: Capabilities | None) -> None:
    """Do nothing when a model does what a path is for.

    Args:
        path: where it is asked; paths that are for every model are never refused.
        capabilities: of the model; `None` refuses nothing.

    Raises:
        InvalidRequestError: it does not.
    """
    kind = next((kind for route, kind in _KINDS.items() if route == path), None)
    if capabilities is None or kind is None:
        return
    capability, verb = kind
    if not getattr(capabilities, capability):
        raise InvalidRequestError(f"the model does not {verb}; ask one that does", param="model")
