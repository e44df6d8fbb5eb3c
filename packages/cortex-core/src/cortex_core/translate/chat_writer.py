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

_DELTAS = {
    # vLLM's name and the older one, since clients read either.
    PartKind.REASONING: (b'{"reasoning":', b',"reasoning_content":', b"}"),
    PartKind.TEXT: (b'{"content":', b"}"),
    PartKind.REFUSAL: (b'{"refusal":', b"}"),
}
"""What stands around a text that is added, as often as it is said."""


class _Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: tuple[TokenLogprob, ...]


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
        single_call: drop whatever comes after the first tool call.
    """

    def __init__(
        self,
        *,
        model: str,
        answer_id: str,
        created: int,
        include_usage: bool = False,
        legacy_functions: bool = False,
        single_call: bool = False,
    ) -> None:
        self._model = model
        self._answer_id = answer_id
        self._created = created
        self._include_usage = include_usage
        self._legacy = legacy_functions
        self._single_call = single_call or legacy_functions
        head = {"id": answer_id, "object": "chat.completion.chunk", "created": created}
        self._head = b"data: %b," % encode_json({**head, "model": model})[:-1]
        self._choice = self._head + b'"choices":[{"index":0,"delta":'
        """What every chunk with a choice begins with."""
        usage = b',"usage":null' if include_usage else b""
        self._rest = b',"logprobs":null,"finish_reason":null}]%b}\n\n' % usage
        """What a chunk ends with that adds something, and nothing else."""
        self._usage_null = usage
        self._delta: tuple[bytes, ...] = ()
        """What stands around the text in the deltas of the open part."""
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
                case Delta():
                    out.append(self._more(event))
                case Open():
                    self._open(event, out)
                case Close():
                    self._close(out)
                case Begin():
                    out.append(self._chunk(b'{"role":"assistant","content":""}'))
                case End():
                    self._end(event, out)
                case Fail():
                    out.append(self.fail(event.error))
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
                    fold.open(None if self._single_call and fold.calls else event)
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
        if self._single_call and self._calls:
            self._kind = None
            return
        self._kind, self._has_text = part.kind, False
        if part.kind is not PartKind.TOOL_CALL:
            self._delta = _DELTAS[part.kind]
            return
        function = encode_json(FunctionCall(name=part.name))
        if self._legacy:
            self._delta = (b'{"function_call":{"arguments":', b"}}")
            out.append(self._chunk(b'{"function_call":%b}' % function))
        else:
            index = b'{"tool_calls":[{"index":%d,' % self._calls
            self._delta = (index + b'"function":{"arguments":', b"}}]}")
            call_id = encode_json(part.call_id)
            head = b'"id":%b,"type":"function","function":%b}]}' % (call_id, function)
            out.append(self._chunk(index + head))
        self._calls += 1

    def _close(self, out: list[bytes]) -> None:
        if self._kind is PartKind.TOOL_CALL and not self._has_text:
            # Clients parse arguments as JSON, even where there are none.
            out.append(self._more(Delta(text=NO_ARGUMENTS)))
        self._kind = None

    def _more(self, delta: Delta) -> bytes:
        if self._kind is None:
            return b""
        self._has_text = True
        logprobs = _Logprobs(content=delta.logprobs) if delta.logprobs else None
        return self._chunk(encode_json(delta.text).join(self._delta), logprobs)

    def _chunk(self, delta: bytes, logprobs: _Logprobs | None = None) -> bytes:
        if logprobs is None:
            return self._choice + delta + self._rest
        told = b',"logprobs":%b,"finish_reason":null}]' % encode_json(logprobs)
        return self._choice + delta + told + self._usage_null + b"}\n\n"

    def _end(self, event: End, out: list[bytes]) -> None:
        self._has_ended = True
        finish = b'{},"logprobs":null,"finish_reason":"%b"}]' % self._finish(event).encode()
        out.append(self._choice + finish + self._usage_null + b"}\n\n")
        if self._include_usage:
            usage = encode_json(chat_usage(event.usage))
            out.append(self._head + b'"choices":[],"usage":%b}\n\n' % usage)
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
        refusal = "".join(fold.texts[PartKind.REFUSAL])
        message = _Message(
            content=text or (None if fold.calls or refusal else ""),
            refusal=refusal or None,
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

    def open(self, part: Open | None) -> None:
        """Begin a part; `None` begins one that is left out."""
        self._part = part

    def delta(self, delta: Delta) -> None:
        """Take more of the part."""
        if self._part is not None:
            self.texts[self._part.kind].append(delta.text)
            self.logprobs += delta.logprobs

    def close(self) -> None:
        """End the part."""
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
