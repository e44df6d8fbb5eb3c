"""Answers of engines that callers get as they are, or nearly so."""

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import RequestError
from cortex_core.sse import encode_comment, encode_event
from cortex_core.translate.reasoning_alias import with_reasoning_alias
from cortex_gateway.api.unasked import UsageHider


class Passage:
    """Streams in the OpenAI dialect, without the usage that the caller did not ask for.

    Args:
        request_id: of the request.
        hider: leaves the usage out; `None` leaves it in.
    """

    def __init__(self, request_id: str, hider: UsageHider | None) -> None:
        self.failure: RequestError | None = None
        self._request_id = request_id
        self._hider = hider

    def feed(self, data: bytes) -> bytes:
        """Pass on whole events."""
        return data if self._hider is None else self._hider.feed(data)

    def end(self) -> bytes:
        """Nothing is held back."""
        return b""

    def whole(self, body: bytes) -> bytes:
        """Pass on a whole answer."""
        return body

    def fail(self, error: RequestError) -> bytes:
        """Return the error event that ends the stream."""
        return error_event(error, Dialect.OPENAI, self._request_id)

    def keep_alive(self) -> bytes:
        """Return a comment."""
        return encode_comment("the answer is being made")

    def thought(self, text: str) -> bytes:
        """There is no place for reasoning in a completion."""
        return b""


class ChatPassage(Passage):
    """Chat answers, with thoughts under both names that clients read.

    Args:
        request_id: of the request.
        hider: as in `Passage`.
        model: as the caller named it.
        created: epoch seconds, for chunks that are written here.
    """

    def __init__(self, request_id: str, hider: UsageHider | None, model: str, created: int) -> None:
        super().__init__(request_id, hider)
        self._model = model
        self._created = created

    def feed(self, data: bytes) -> bytes:
        """Pass on whole events."""
        # Not `super().feed`: this is done with each token.
        if self._hider is not None:
            data = self._hider.feed(data)
        return with_reasoning_alias(data)

    def whole(self, body: bytes) -> bytes:
        """Pass on a whole answer."""
        return with_reasoning_alias(body)

    def thought(self, text: str) -> bytes:
        """Return a chunk of reasoning, under both names that clients read."""
        delta = {"role": "assistant", "reasoning": text, "reasoning_content": text}
        chunk = {
            "id": "chatcmpl-" + self._request_id.removeprefix("req_"),
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        return encode_event(encode_json(chunk))
