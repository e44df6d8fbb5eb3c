"""Counting the tokens of a prompt: asked of the engine, which alone knows them."""

from collections.abc import Callable

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect
from cortex_core.errors import RequestError, UpstreamCutError
from cortex_core.harness import Route
from cortex_core.translate.target import Target
from cortex_gateway.proxy.asked import EVENT_STREAM, Asked, Outbound
from cortex_gateway.proxy.rewrite import whole

_PATHS = {
    Dialect.OPENAI: Route.COUNT_TOKENS.value,
    Dialect.ANTHROPIC: "/v1/messages/count_tokens",
}

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_NOT_COUNTED = ("max_tokens", "stream")
"""Members of a messages request that Anthropic's counting refuses."""


class _Count(msgspec.Struct, frozen=True, kw_only=True):
    """A count by an engine of ours, or by an upstream of Anthropic's dialect."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None


_COUNT = msgspec.json.Decoder(_Count)


class CountAsked:
    """Counts the prompt of a request that could as well be answered.

    Args:
        inner: the request; whatever it would send is what is counted.
        render: makes the answer's body of the number of tokens.
    """

    is_stream = False
    stream_type = EVENT_STREAM

    def __init__(self, inner: Asked, render: Callable[[int], bytes]) -> None:
        self.model = inner.model
        self._inner = inner
        self._render = render

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Send to the upstream's path for counting what would be sent to be answered.

        Raises:
            RequestError: the request cannot be put to that model.
        """
        sent = self._inner.outbound(target, dialect)
        body = sent.body
        if dialect is Dialect.ANTHROPIC:
            members = _MEMBERS.decode(whole(body))
            body = encode_json({k: v for k, v in members.items() if k not in _NOT_COUNTED})
        return msgspec.structs.replace(
            sent,
            path=_PATHS[dialect],
            body=body,
            answer=CountAnswer(self._render),
            is_translated=True,
        )

    def failed(self, error: RequestError) -> bytes:
        """Never called: a count is no stream."""
        return self._inner.failed(error)

    async def settle(self) -> None:
        """Nothing is kept."""


class CountAnswer:
    """Reads a count and writes it in the caller's dialect."""

    def __init__(self, render: Callable[[int], bytes]) -> None:
        self.failure: RequestError | None = None
        self._render = render

    def feed(self, data: bytes) -> bytes:
        """Take what should not be a stream."""
        self.failure = UpstreamCutError("the upstream answered a count with a stream")
        return b""

    def end(self) -> bytes:
        """Return nothing."""
        return b""

    def whole(self, body: bytes) -> bytes:
        """Return the caller's body.

        Raises:
            UpstreamCutError: there is no count in the answer.
        """
        try:
            count = _COUNT.decode(body)
        except msgspec.DecodeError:
            count = _Count()
        tokens = count.input_tokens if count.prompt_tokens is None else count.prompt_tokens
        if tokens is None:
            raise UpstreamCutError("the upstream's answer has no count of tokens")
        return self._render(tokens)

    def fail(self, error: RequestError) -> bytes:
        """Return nothing: a count is no stream."""
        return b""

    def keep_alive(self) -> bytes:
        """Return nothing: a count is no stream."""
        return b""

    def thought(self, text: str) -> bytes:
        """Return nothing: a count is no stream."""
        return b""
