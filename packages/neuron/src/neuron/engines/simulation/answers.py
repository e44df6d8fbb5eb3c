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
from neuron.engines.simulation.planned import Kind, Piece, Plan, PlannedChoice


class CachedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt tokens that were not computed again."""

    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What the tokens of an answer were."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET
    prompt_tokens_details: CachedTokens | UnsetType = UNSET
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


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
    reasoning: str | UnsetType | None = UNSET
    """vLLM's name for it."""
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
    stop_reason: str | UnsetType | None = UNSET
    """vLLM's: the stop string that ended it; not in a chunk that ends nothing."""


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
        made = sum(choice.made_tokens for choice in self._plan.choices)
        answer = self._answer(choices, self._object, self._usage(made, is_final=True))
        return encode_json(answer)

    def opening(self, index: int) -> list[Choice]:
        """Return what comes before the first token of a choice."""
        choice = self._plan.choices[index]
        if not self._plan.is_chat:
            return [Choice(index=index, text=choice.echo)] if choice.echo else []
        content = None if choice.calls else ""
        return [Choice(index=index, delta=ChatMessage(role="assistant", content=content))]

    def token(self, index: int, position: int) -> list[Choice]:
        """Return what says the token of a choice at `position`, one or two chunks."""
        choice = self._plan.choices[index]
        piece, offset = _located(choice, position)
        token = piece.tokens[offset]
        if not self._plan.is_chat:
            return [Choice(index=index, text=token)]
        if piece.kind is Kind.REASONING:
            return [Choice(index=index, delta=ChatMessage(reasoning=token))]
        if piece.kind is Kind.TEXT:
            return [Choice(index=index, delta=ChatMessage(content=token))]
        number = choice.calls.index(piece)
        arguments = ToolCallPart(index=number, function=FunctionPart(arguments=token))
        parts = [arguments]
        if offset == 0:
            begun = self._call(index, number, piece, arguments="")
            parts = [msgspec.structs.replace(begun, index=number), arguments]
        return [Choice(index=index, delta=ChatMessage(tool_calls=(part,))) for part in parts]

    def closing(self, index: int) -> Choice:
        """Return the end of a choice."""
        choice = self._plan.choices[index]
        reason, stop = choice.finish_reason, choice.stop_reason
        if not self._plan.is_chat:
            return Choice(index=index, text="", finish_reason=reason, stop_reason=stop)
        return Choice(index=index, delta=ChatMessage(), finish_reason=reason, stop_reason=stop)

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
            encode_json(
                self._answer((), self._chunk_object, self._usage(made_tokens, is_final=True))
            )
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

    def _usage(self, made_tokens: int, *, is_final: bool = False) -> Usage:
        prompt = self._plan.prompt_tokens
        details: CompletionDetails | UnsetType = UNSET
        if is_final and self._plan.is_chat:
            details = CompletionDetails(reasoning_tokens=self._plan.reasoning_tokens)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=made_tokens,
            total_tokens=prompt + made_tokens,
            prompt_tokens_details=CachedTokens(),
            completion_tokens_details=details,
        )

    def _whole_choice(self, index: int, choice: PlannedChoice) -> Choice:
        reason, stop = choice.finish_reason, choice.stop_reason
        text = choice.text_of(Kind.TEXT)
        if not self._plan.is_chat:
            return Choice(
                index=index,
                text=f"{choice.echo}{text or ''}",
                finish_reason=reason,
                stop_reason=stop,
            )
        calls = tuple(
            self._call(index, number, piece, piece.text)
            for number, piece in enumerate(choice.calls)
        )
        message = ChatMessage(
            role="assistant",
            content=text,
            reasoning=choice.text_of(Kind.REASONING),
            refusal=None,
            tool_calls=calls or UNSET,
        )
        return Choice(index=index, message=message, finish_reason=reason, stop_reason=stop)

    def _call(self, index: int, number: int, piece: Piece, arguments: str) -> ToolCallPart:
        return ToolCallPart(
            id=f"{self._call_id}-{index}-{number}",
            type="function",
            function=FunctionPart(name=piece.tool, arguments=arguments),
        )


def _located(choice: PlannedChoice, position: int) -> tuple[Piece, int]:
    """Return the piece that has the token at `position`, and where in it."""
    for piece in choice.pieces:
        if position < len(piece.tokens):
            return piece, position
        position -= len(piece.tokens)
    raise IndexError(position)
