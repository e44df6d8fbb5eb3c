"""The bodies and stream chunks that the simulated engine writes.

Source: OpenAI API reference, "The chat completion object", "The chat completion chunk object",
"The completion object" (read November 2026). A field that is `UNSET` is left out, one that is
`None` is written as null.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from cortex_core.codec import encode_json
from cortex_core.sse import encode_event
from neuron.engines.simulation.plan import Plan, PlannedChoice


class CachedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt tokens that were not computed again."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET
    prompt_tokens_details: CachedTokens | UnsetType = UNSET


class FunctionPart(msgspec.Struct, frozen=True, kw_only=True):
    """A function call, or the next piece of one."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallPart(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call, or the next piece of one."""

    function: FunctionPart
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a whole body, or the next piece of it."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: tuple[ToolCallPart, ...] | UnsetType = UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer; `message`, `delta` or `text` says it."""

    index: int
    message: ChatMessage | UnsetType = UNSET
    delta: ChatMessage | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: None = None
    finish_reason: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole body or a chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | UnsetType | None = UNSET


class Writer:
    """Write the answer to one request, whole or in chunks.

    Args:
        plan: what is answered.
        id: without its prefix.
        created: epoch seconds.
        model: as the caller named it.
    """

    def __init__(self, plan: Plan, id: str, created: int, model: str) -> None:  # noqa: A002
        self._plan = plan
        prefix, self._object = (
            ("chatcmpl", "chat.completion")
            if plan.is_chat
            else (
                "cmpl",
                "text_completion",
            )
        )
        self._id, self._created, self._model = f"{prefix}-{id}", created, model
        self._call_id = f"call-{id}"

    def whole(self) -> bytes:
        """Return the body of an answer that is not streamed."""
        choices = tuple(
            self._whole_choice(index, choice) for index, choice in enumerate(self._plan.choices)
        )
        made = sum(len(choice.tokens) for choice in self._plan.choices)
        answer = self._answer(choices, self._object, self._usage(made))
        return encode_json(answer)

    def opening(self, index: int) -> list[Choice]:
        """Return what comes before the first token of a choice."""
        choice = self._plan.choices[index]
        if not self._plan.is_chat:
            return [Choice(index=index, text=choice.echo)] if choice.echo else []
        if choice.tool is None:
            return [Choice(index=index, delta=ChatMessage(role="assistant", content=""))]
        call = ToolCallPart(
            index=0,
            id=f"{self._call_id}-{index}",
            type="function",
            function=FunctionPart(name=choice.tool, arguments=""),
        )
        return [
            Choice(index=index, delta=ChatMessage(role="assistant", content=None)),
            Choice(index=index, delta=ChatMessage(tool_calls=(call,))),
        ]

    def token(self, index: int, token: str) -> Choice:
        """Return the next token of a choice."""
        if not self._plan.is_chat:
            return Choice(index=index, text=token)
        if self._plan.choices[index].tool is None:
            return Choice(index=index, delta=ChatMessage(content=token))
        piece = ToolCallPart(index=0, function=FunctionPart(arguments=token))
        return Choice(index=index, delta=ChatMessage(tool_calls=(piece,)))

    def closing(self, index: int) -> Choice:
        """Return the end of a choice."""
        reason = self._plan.choices[index].finish_reason
        if not self._plan.is_chat:
            return Choice(index=index, text="", finish_reason=reason)
        return Choice(index=index, delta=ChatMessage(), finish_reason=reason)

    def chunk(self, choice: Choice, made_tokens: int) -> bytes:
        """Return one event; `made_tokens` are those of all choices so far."""
        usage: Usage | UnsetType | None = UNSET
        if self._plan.has_continuous_usage:
            usage = self._usage(made_tokens)
        elif self._plan.has_usage:
            usage = None
        return encode_event(encode_json(self._answer((choice,), self._chunk_object, usage)))

    def usage_chunk(self, made_tokens: int) -> bytes:
        """Return the event that carries nothing but the usage."""
        return encode_event(
            encode_json(self._answer((), self._chunk_object, self._usage(made_tokens)))
        )

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self._plan.is_chat else self._object

    def _answer(
        self, choices: tuple[Choice, ...], kind: str, usage: Usage | UnsetType | None
    ) -> Answer:
        return Answer(
            id=self._id,
            object=kind,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
        )

    def _usage(self, made_tokens: int) -> Usage:
        prompt = self._plan.prompt_tokens
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=made_tokens,
            total_tokens=prompt + made_tokens,
            prompt_tokens_details=CachedTokens(),
        )

    def _whole_choice(self, index: int, choice: PlannedChoice) -> Choice:
        text = choice.echo + "".join(choice.tokens)
        if not self._plan.is_chat:
            return Choice(index=index, text=text, finish_reason=choice.finish_reason)
        message = ChatMessage(role="assistant", content=text, refusal=None)
        if choice.tool is not None:
            call = ToolCallPart(
                id=f"{self._call_id}-{index}",
                type="function",
                function=FunctionPart(name=choice.tool, arguments=text),
            )
            message = ChatMessage(role="assistant", content=None, refusal=None, tool_calls=(call,))
        return Choice(index=index, message=message, finish_reason=choice.finish_reason)
