"""The paths about tokens, which are answered for models that are not loaded as well."""

import binascii
import logging
from base64 import b64decode

import msgspec
from starlette.types import Message, Receive, Scope, Send

from cortex_core.codec import decode_request
from cortex_core.errors import (
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import ModelSpec, Route
from cortex_core.ids import ModelId, RequestId
from cortex_core.replica import ReplicaStatus
from cortex_core.server.exchange import exchange_of
from cortex_core.wire.neuron import SPEC_HEADER, LoadRequest
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER
from neuron.api.body import read_body
from neuron.api.inference import InferenceEndpoint
from neuron.supervisor.actor import Supervisor
from neuron.supervisor.parts import Parts

logger = logging.getLogger(__name__)

_LOAD_REQUEST = msgspec.json.Decoder(LoadRequest)


class TokenEndpoint:
    """Plain ASGI endpoint of one of `FILES_ROUTES`.

    A loaded model's engine answers. Where there is none, the model's files do, and if they are
    not here either the refusal is that of every other path.

    Args:
        route: which path.
        inference: of the same path.
        supervisor: knows the models.
        parts: has the harnesses.
    """

    def __init__(
        self, route: Route, inference: InferenceEndpoint, supervisor: Supervisor, parts: Parts
    ) -> None:
        self._route = route
        self._inference = inference
        self._supervisor = supervisor
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = await read_body(receive)
        model = ModelId(decode_request(body, ENVELOPE_DECODER).model)
        answer = None
        if not self._is_loaded(model) and not self._supervisor.is_draining:
            answer = await self._from_files(model, body, scope)
        if answer is None:
            await self._inference(scope, _again(body, receive), send)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _is_loaded(self, model: ModelId) -> bool:
        has = self._supervisor.has(model)
        return has and self._supervisor.state(model).status is ReplicaStatus.LOADED

    async def _from_files(self, model: ModelId, body: bytes, scope: Scope) -> bytes | None:
        """Return the answer of a model's files, or `None` where they cannot be used."""
        spec = self._spec(model, scope)
        harness = None if spec is None else self._parts.harnesses.get(spec.harness)
        if spec is None or harness is None:
            return None
        request_id = exchange_of(scope).request_id
        outcome = "cancelled"
        try:
            answer = await harness.answer_from_files(spec, self._route, body, request_id)
            outcome = "ok"
        except (NotFoundError, ModelLoadFailedError) as error:
            logger.info("no tokens of %s: %s", model[:200], error.message)
            outcome = "refused"
            return None
        except RequestError as error:
            outcome = "error" if error.status >= 500 else "invalid"
            raise
        finally:
            # The ordinary refusal counts itself.
            if outcome != "refused":
                self._account(model, outcome, request_id)
        return answer

    def _account(self, model: ModelId, outcome: str, request_id: RequestId) -> None:
        label = model if self._supervisor.has(model) else "unknown"
        self._parts.metrics.requests.labels(label, self._route.value, outcome).inc()
        extra = {
            "request_id": request_id,
            "route": self._route.value,
            "model": model[:200],
            "outcome": outcome,
        }
        logger.info("request answered from files", extra=extra)

    def _spec(self, model: ModelId, scope: Scope) -> ModelSpec | None:
        """Return how the model would be loaded, as far as anybody knows."""
        if self._supervisor.has(model):
            return self._asked(model)
        for name, value in scope["headers"]:
            if name == SPEC_HEADER.encode():
                return _told(model, value)
        for default in self._parts.settings.default_models:
            if default.model_id == model:
                return ModelSpec(
                    model=model,
                    harness=default.harness,
                    quant=default.quant,
                    engine=default.engine,
                )
        harness = next(iter(self._parts.harnesses), None)
        return None if harness is None else ModelSpec(model=model, harness=harness)

    def _asked(self, model: ModelId) -> ModelSpec:
        """Return how a model was asked for; of an adapter, how its base was."""
        spec = self._supervisor.state(model).asked
        if spec.base is None or not self._supervisor.has(spec.base):
            return spec
        base = self._supervisor.state(spec.base).asked
        return msgspec.structs.replace(base, model=model, base=base.model)


def _told(model: ModelId, header: bytes) -> ModelSpec:
    try:
        told = _LOAD_REQUEST.decode(b64decode(header, validate=True))
    except (binascii.Error, msgspec.DecodeError) as error:
        raise InvalidRequestError(f"the header {SPEC_HEADER} cannot be read: {error}") from None
    return ModelSpec(
        model=model,
        harness=told.harness,
        quant=told.quant,
        engine=told.engine,
        base=None if told.base is None else ModelId(told.base),
    )


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
