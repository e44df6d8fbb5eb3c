"""Writes answers as chat completions, for callers whose upstream speaks another dialect.

Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object"
(read November 2026).
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import RequestError
from cortex_core.sse import DONE, encode_comment
from cortex_core.translate.parts import (
    Begin,
    Close,
    Delta,
    End,
    Fail,
    Finish,
    Open,
    PartEvent,
    PartKind,
    Usage,
)
from cortex_core.wire.openai.chat import (
    ChatUsage,
    CompletionTokensDetails,
    FunctionCall,
    PromptTokensDetails,
    TokenLogprob,
    ToolCall,
)

NO_ARGUMENTS = "{}"

_FINISHES = {
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.WINDOW: "length",
    Finish.TOOL_CALLS: "tool_calls",
    Finish.CONTENT_FILTER: "content_filter",
}

_MEMBERS = {PartKind.TEXT: "content", PartKind.REFUSAL: "refusal"}


class _Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: tuple[TokenLogprob, ...]


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    delta: dict[str, object]
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    index: int = 0


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    content: str | None
    refusal: str | None = None
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: tuple[ToolCall, ...] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionCall | msgspec.UnsetType = msgspec.UNSET
    role: Literal["assistant"] = "assistant"


class _WholeChoice(msgspec.Struct, frozen=True, kw_only=True):
    message: _Message
    finish_reason: str
    logprobs: _Logprobs | None = None
    index: int = 0


class _Whole(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    choices: tuple[_WholeChoice, ...]
    usage: ChatUsage
    object: Literal["chat.completion"] = "chat.completion"


class ChatWriter:
    """`Writer` of chat completions with one choice.

    Args:
        model: as the caller named it.
        answer_id: such as `chatcmpl-0a1b`.
        created: epoch seconds.
        include_usage: whether a stream ends with usage.
        legacy_functions: give the first call as `function_call`, and no other.
    """

    def __init__(
        self,
        *,
        model: str,
        answer_id: str,
        created: int,
        include_usage: bool = False,
        legacy_functions: bool = False,
    ) -> None:
        self._model = model
        self._answer_id = answer_id
        self._created = created
        self._include_usage = include_usage
        self._legacy = legacy_functions
        self._kind: PartKind | None = None
        """Of the open part; `None` when a part is dropped."""
        self._calls = 0
        self._has_text = False
        """Whether the open part has had a delta."""
        self._has_ended = False

    def write(self, events: Iterable[PartEvent]) -> bytes:
        """Return the stream's next bytes."""
        out: list[bytes] = []
        for event in events:
            if self._has_ended:
                break
            match event:
                case Delta() if self._kind is not None:
                    self._has_text = True
                    out.append(self._chunk(self._delta(event.text), event.logprobs))
                case Open():
                    self._open(event, out)
                case Close():
                    if self._kind is PartKind.TOOL_CALL and not self._has_text:
                        # Clients parse arguments as JSON, even where there are none.
                        out.append(self._chunk(self._delta(NO_ARGUMENTS)))
                    self._kind = None
                case Begin():
                    out.append(self._chunk({"role": "assistant", "content": ""}))
                case End():
                    self._end(event, out)
                case Fail():
                    out.append(self.fail(event.error))
                case _:
                    pass
        return b"".join(out)

    def whole(self, events: Iterable[PartEvent]) -> bytes:
        """Return the body of an answer that is no stream.

        Raises:
            RequestError: the sequence ends in `Fail`.
        """
        fold = _Fold()
        for event in events:
            match event:
                case Open():
                    fold.open(event)
                case Delta():
                    fold.delta(event)
                case Close():
                    fold.close()
                case End():
                    return encode_json(self._whole(fold, event))
                case Fail():
                    raise event.error
                case Begin():
                    pass
        raise ValueError("the sequence has no end")

    def fail(self, error: RequestError) -> bytes:
        """Return the error event, after which no `[DONE]` comes."""
        if self._has_ended:
            return b""
        self._has_ended = True
        return error_event(error, Dialect.OPENAI, "")

    def keep_alive(self) -> bytes:
        """Return a comment."""
        return encode_comment("the answer is being made")

    def _open(self, part: Open, out: list[bytes]) -> None:
        self._kind, self._has_text = part.kind, False
        if part.kind is not PartKind.TOOL_CALL:
            return
        self._calls += 1
        if self._legacy:
            if self._calls > 1:
                self._kind = None
                return
            delta: dict[str, object] = {"function_call": {"name": part.name, "arguments": ""}}
        else:
            function = {"name": part.name, "arguments": ""}
            call = {"index": self._calls - 1, "id": part.call_id, "type": "function"}
            delta = {"tool_calls": [{**call, "function": function}]}
        out.append(self._chunk(delta))

    def _delta(self, text: str) -> dict[str, object]:
        if self._kind is PartKind.REASONING:
            # vLLM's name and the older one, since clients read either.
            return {"reasoning": text, "reasoning_content": text}
        if self._kind is not PartKind.TOOL_CALL:
            return {_MEMBERS[self._kind or PartKind.TEXT]: text}
        if self._legacy:
            return {"function_call": {"arguments": text}}
        return {"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]}

    def _chunk(self, delta: dict[str, object], logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        told = _Logprobs(content=logprobs) if logprobs else None
        return self._event((_Choice(delta=delta, logprobs=told),))

    def _event(self, choices: tuple[_Choice, ...], usage: ChatUsage | None = None) -> bytes:
        chunk = _Chunk(
            id=self._answer_id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage if self._include_usage else msgspec.UNSET,
        )
        return b"data: " + encode_json(chunk) + b"\n\n"

    def _end(self, event: End, out: list[bytes]) -> None:
        self._has_ended = True
        out.append(self._event((_Choice(delta={}, finish_reason=self._finish(event)),)))
        if self._include_usage:
            out.append(self._event((), usage=chat_usage(event.usage)))
        out.append(DONE)

    def _finish(self, event: End) -> str:
        finish = _FINISHES[event.finish]
        return "function_call" if self._legacy and finish == "tool_calls" else finish

    def _whole(self, fold: "_Fold", event: End) -> _Whole:
        calls: tuple[ToolCall, ...] | msgspec.UnsetType = tuple(fold.calls) or msgspec.UNSET
        legacy: FunctionCall | msgspec.UnsetType = msgspec.UNSET
        if self._legacy and fold.calls:
            calls, legacy = msgspec.UNSET, fold.calls[0].function
        thoughts = "".join(fold.texts[PartKind.REASONING]) or msgspec.UNSET
        text = "".join(fold.texts[PartKind.TEXT])
        message = _Message(
            content=text or (None if fold.calls else ""),
            refusal="".join(fold.texts[PartKind.REFUSAL]) or None,
            reasoning=thoughts,
            reasoning_content=thoughts,
            tool_calls=calls,
            function_call=legacy,
        )
        choice = _WholeChoice(
            message=message,
            finish_reason=self._finish(event),
            logprobs=_Logprobs(content=tuple(fold.logprobs)) if fold.logprobs else None,
        )
        return _Whole(
            id=self._answer_id,
            created=self._created,
            model=self._model,
            choices=(choice,),
            usage=chat_usage(event.usage),
        )


class _Fold:
    """Collects a whole message."""

    def __init__(self) -> None:
        self.texts: dict[PartKind, list[str]] = {kind: [] for kind in PartKind}
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self._part: Open | None = None

    def open(self, part: Open) -> None:
        self._part = part

    def delta(self, delta: Delta) -> None:
        assert self._part is not None
        self.texts[self._part.kind].append(delta.text)
        self.logprobs += delta.logprobs

    def close(self) -> None:
        part = self._part
        if part is not None and part.kind is PartKind.TOOL_CALL:
            arguments = self.texts[PartKind.TOOL_CALL]
            function = FunctionCall(name=part.name, arguments="".join(arguments) or NO_ARGUMENTS)
            self.calls.append(ToolCall(id=part.call_id, function=function))
            arguments.clear()


def chat_usage(usage: Usage) -> ChatUsage:
    """Return usage as chat completions count."""
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
    return ChatUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=(
            None if cached is None else PromptTokensDetails(cached_tokens=cached)
        ),
        completion_tokens_details=(
            None if reasoning is None else CompletionTokensDetails(reasoning_tokens=reasoning)
        ),
    )
