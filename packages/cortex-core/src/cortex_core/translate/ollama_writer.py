"""Answers in Ollama's dialect: lines of JSON, the last one with `done`."""

import datetime
from collections.abc import Callable, Iterable, Sequence

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import RequestError
from cortex_core.translate.parts import Close, Delta, End, Fail, Finish, Open, PartEvent, PartKind
from cortex_core.wire.ollama import (
    OllamaAnswer,
    OllamaCall,
    OllamaFunction,
    OllamaMessage,
    OllamaRequest,
)

_REASONS = {
    Finish.LENGTH: "length",
    Finish.WINDOW: "length",
    Finish.CONTENT_FILTER: "content_filter",
}
"""Ollama itself says `stop` or `length`, but never filters."""

_ARGUMENTS = msgspec.json.Decoder(dict[str, object])


class OllamaWriter:
    """Writes one answer, as a stream or whole.

    Args:
        request: says how the caller named the model, and whether it wants to see thoughts.
        is_chat: whether to write messages, or the bare texts of `/api/generate`.
        now: seconds on a scale that never jumps.
        waited_s: between the caller's request and this call, which is when it is sent on.
        epoch_s: the wall clock at this call.
    """

    def __init__(
        self,
        *,
        request: OllamaRequest,
        is_chat: bool,
        now: Callable[[], float],
        waited_s: float,
        epoch_s: float,
    ) -> None:
        self._model = request.model
        self._shows_thinking = request.think is not False
        self._is_chat = is_chat
        self._now = now
        self._sent_at = now()
        self._waited_s = waited_s
        self._epoch_s = epoch_s
        self._first_at: float | None = None
        self._open: Open | None = None
        self._arguments: list[str] = []
        self._calls = 0
        self._is_ended = False

    def write(self, events: Iterable[PartEvent]) -> bytes:
        """Return the next lines."""
        lines = b""
        for event in events:
            if isinstance(event, Fail):
                return lines + self.fail(event.error)
            if (piece := self._piece(event)) is not None:
                lines += self._line(piece, event) + b"\n"
        return lines

    def whole(self, events: Iterable[PartEvent]) -> bytes:
        """Return the one object that a caller without a stream gets.

        Raises:
            RequestError: the sequence ends in `Fail`.
        """
        pieces: list[OllamaMessage] = []
        for event in events:
            if isinstance(event, Fail):
                raise event.error
            if (piece := self._piece(event)) is not None:
                pieces.append(piece)
        # When the first token came cannot be seen here.
        self._first_at = None
        text = "".join(piece.content or "" for piece in pieces)
        thinking = "".join(piece.thinking or "" for piece in pieces) or None
        calls = [call for piece in pieces for call in piece.tool_calls or ()]
        return self._line(_message(text, thinking, calls), event)

    def loaded(self) -> bytes:
        """Return the answer to a request that has a model loaded and says nothing to it."""
        return self._line(_message(""), End(finish=Finish.STOP), "load")

    def fail(self, error: RequestError) -> bytes:
        """Return the line that ends a broken stream."""
        if self._is_ended:
            return b""
        self._is_ended = True
        return error_event(error, Dialect.OLLAMA, "")

    def keep_alive(self) -> bytes:
        """Return a line that adds nothing: the dialect has no comments."""
        return b"" if self._is_ended else self._line(_message("")) + b"\n"

    def _piece(self, event: PartEvent) -> OllamaMessage | None:
        """Return what an event adds to the answer: text, thoughts, one call, or its end."""
        if isinstance(event, Open):
            self._open, self._arguments = event, []
        elif isinstance(event, End):
            self._is_ended = True
            return _message("")
        elif self._open is not None and isinstance(event, Delta):
            return self._delta(event.text, self._open.kind)
        elif self._open is not None and isinstance(event, Close):
            return self._call(self._open) if self._open.kind is PartKind.TOOL_CALL else None
        return None

    def _delta(self, text: str, kind: PartKind) -> OllamaMessage | None:
        if self._first_at is None:
            self._first_at = self._now()
        if kind is PartKind.TOOL_CALL:
            self._arguments.append(text)
            return None
        if kind is PartKind.REASONING:
            return _message("", text) if self._shows_thinking else None
        return _message(text)

    def _call(self, opened: Open) -> OllamaMessage | None:
        try:
            arguments = _ARGUMENTS.decode("".join(self._arguments) or "{}")
        except (msgspec.DecodeError, RecursionError):
            # Cut off by the limit of tokens; the dialect cannot say half an object.
            return None
        function = OllamaFunction(name=opened.name, arguments=arguments, index=self._calls)
        self._calls += 1
        return _message("", None, [OllamaCall(id=opened.call_id, function=function)])

    def _line(
        self, message: OllamaMessage, event: PartEvent | None = None, reason: str | None = None
    ) -> bytes:
        now, first_at = self._now(), self._first_at
        moment = self._epoch_s + now - self._sent_at
        created = datetime.datetime.fromtimestamp(moment, datetime.UTC)
        answer = OllamaAnswer(
            model=self._model,
            created_at=created.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            message=message if self._is_chat else None,
            response=None if self._is_chat else message.content,
            thinking=None if self._is_chat else message.thinking,
            done=isinstance(event, End),
        )
        if isinstance(event, End):
            answer = msgspec.structs.replace(
                answer,
                done_reason=reason or _REASONS.get(event.finish, "stop"),
                total_duration=_ns(self._sent_at - self._waited_s, now),
                load_duration=round(self._waited_s * 1e9),
                prompt_eval_count=event.usage.prompt_tokens,
                prompt_eval_duration=_ns(self._sent_at, first_at),
                eval_count=event.usage.completion_tokens,
                eval_duration=_ns(first_at, now),
            )
        return encode_json(answer)


def _message(
    content: str, thinking: str | None = None, calls: Sequence[OllamaCall] = ()
) -> OllamaMessage:
    made = tuple(calls) or None
    return OllamaMessage(role="assistant", content=content, thinking=thinking, tool_calls=made)


def _ns(since: float | None, until: float | None) -> int | None:
    return None if since is None or until is None else round((until - since) * 1e9)
