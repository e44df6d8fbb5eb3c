"""What a simulated model says of tokens, which needs no engine."""

import msgspec

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.harness import ModelSpec, Route
from neuron.engines.counts import TokenCount
from neuron.engines.simulation.plan import conversation_text, prompt_text
from neuron.engines.simulation.requests import (
    CHAT_DECODER,
    DETOKENIZE_DECODER,
    TOKENIZE_DECODER,
)
from neuron.engines.simulation.text import count_tokens, decode_tokens, encode_token, tokens_of
from neuron.settings import SimulatedSettings


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[models.engine]` of a simulated model; the names are vLLM's."""

    max_model_len: int | None = None
    """Context in tokens."""
    max_num_seqs: int | None = None
    """Requests that run together."""
    enable_lora: bool = False
    """Whether it takes adapters."""
    max_loras: int = 1
    """How many adapters, as gateways count them; it takes any number itself."""
    max_cpu_loras: int | None = None
    """How many of them are kept, likewise; absent is `max_loras`."""
    runner: str | None = None
    """`generate` or `pooling`; absent goes by the name: a model called embed... embeds."""


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a `/tokenize` answer."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a `/detokenize` answer."""

    prompt: str


class Tokens:
    """Answers the paths of `FILES_ROUTES` for one model.

    Raises:
        InvalidRequestError: an engine option does not exist or has a wrong type.
    """

    def __init__(self, spec: ModelSpec, settings: SimulatedSettings) -> None:
        options = options_of(spec)
        self.context = options.max_model_len or settings.context
        """In tokens."""
        self.embeds = (
            options.runner == "pooling" if options.runner else "embed" in spec.model.lower()
        )
        """Whether the model embeds, and so does not chat."""

    def answer(self, route: Route, body: bytes) -> bytes:
        """Return the body of the answer.

        Raises:
            RequestError: as the caller shall see it.
        """
        match route:
            case Route.COUNT_TOKENS if not self.embeds:
                counted = decode_request(body, CHAT_DECODER)
                tokens = count_tokens(prompt_text(counted))
                return encode_json(TokenCount(model=counted.model, prompt_tokens=tokens))
            case Route.TOKENIZE:
                return self._tokenize(body)
            case Route.DETOKENIZE:
                wanted = decode_request(body, DETOKENIZE_DECODER)
                return encode_json(Detokenized(prompt=decode_tokens(wanted.tokens)))
            case _:
                raise InvalidRequestError(f"this model does not do {route.value}", param="model")

    def _tokenize(self, body: bytes) -> bytes:
        request = decode_request(body, TOKENIZE_DECODER)
        if request.prompt is None and request.messages is None:
            raise InvalidRequestError("give a prompt or messages", param="prompt")
        text = request.prompt or conversation_text(request.messages or (), request.tools)
        tokens = tokens_of(text)
        answer = Tokenized(
            count=len(tokens),
            max_model_len=self.context,
            tokens=[encode_token(token) for token in tokens],
            token_strs=tokens if request.return_token_strs else None,
        )
        return encode_json(answer)


def options_of(spec: ModelSpec) -> EngineOptions:
    """Return the engine options of `spec`.

    Raises:
        InvalidRequestError: one does not exist or has a wrong type.
    """
    try:
        return msgspec.convert(spec.engine, EngineOptions)
    except msgspec.ValidationError as error:
        known = ", ".join(EngineOptions.__struct_fields__)
        raise InvalidRequestError(
            f"engine: {error}; a simulated model takes {known}", param="engine"
        ) from None
