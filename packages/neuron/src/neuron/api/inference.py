"""The inference paths: admit, hand the body to the engine, pass its answer on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_core.codec import decode_request
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import DrainingError, InternalError, RequestError
from cortex_core.harness import Route
from cortex_core.ids import ModelId
from cortex_core.routing.queue import Priority, read_priority
from cortex_core.server.clock import Clock
from cortex_core.server.exchange import Cut, exchange_of
from cortex_core.server.logging import tell
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER
from neuron.api.body import read_body
from neuron.api.fleet import caller_of
from neuron.metrics import NeuronMetrics
from neuron.supervisor.actor import Supervisor
from neuron.supervisor.lease import Lease, NotAdmittedError, Wish

logger = logging.getLogger(__name__)

NOT_ADMITTED = (b"x-cortex-not-admitted", b"1")
"""Header of an answer to a request that no engine has seen: it may be sent elsewhere."""

ENGINE_DIED = (b"x-cortex-engine-died", b"1")
"""Header of an error whose request had an engine that died; it is worth another attempt."""

_URGENCY = {Priority.LOW: -1, Priority.NORMAL: 0, Priority.HIGH: 1}

_LEASE_KEY = "neuron.lease"

_PATHS = frozenset(route.value for route in Route)

_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class InferenceEndpoint:
    """Plain ASGI endpoint of one inference path.

    Args:
        route: which path.
        supervisor: admits.
        metrics: counts every request, whatever becomes of it.
        clock: times it.
    """

    def __init__(
        self, route: Route, supervisor: Supervisor, metrics: NeuronMetrics, clock: Clock
    ) -> None:
        self._clock = clock
        self._route = route
        self._supervisor = supervisor
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = await read_body(receive)
        model = ModelId(decode_request(body, ENVELOPE_DECODER).model)
        wish = _wish(scope, self._route, body)
        outcome = "cancelled"
        label: str = model
        begin = self._clock.now()
        try:
            async with self._supervisor.lease(model, wish) as lease:
                scope[_LEASE_KEY] = lease
                await self._serve(lease, body, _URGENCY[wish.priority], scope, send)
            outcome = "ok"
        except NotAdmittedError as error:
            outcome = "refused"
            label = model if self._supervisor.has(model) else "unknown"
            self._metrics.refusals.labels(error.refused.code or "invalid").inc()
            # Many may be told the same; none is to carry the traces of all.
            raise error.refused.with_traceback(None) from None
        except RequestError as error:
            outcome = "error" if error.status >= 500 else "invalid"
            await _end_badly(error, scope, send)
        except Exception:
            outcome = "error"
            await _end_badly(InternalError(), scope, send, is_raised=False)
            raise
        except asyncio.CancelledError:
            if exchange_of(scope).cut is Cut.DRAIN and exchange_of(scope).is_started:
                await _end_badly(DrainingError("this neuron is shutting down"), scope, send)
            raise
        finally:
            self._account(scope, model, label, outcome, self._clock.now() - begin)

    def _account(
        self, scope: Scope, model: ModelId, label: str, outcome: str, duration_s: float
    ) -> None:
        self._metrics.requests.labels(label, self._route.value, outcome).inc()
        fields = {
            "request_id": exchange_of(scope).request_id,
            "route": self._route.value,
            "model": model[:200],
            "outcome": outcome,
            "duration_s": round(duration_s, 4),
        }
        tell(logger, "request", fields)

    async def _serve(
        self, lease: Lease, body: bytes, urgency: int, scope: Scope, send: Send
    ) -> None:
        request_id = exchange_of(scope).request_id
        answer = await lease.engine.serve(self._route, body, request_id, urgency)
        kind = (b"content-type", answer.content_type.encode())
        if isinstance(answer.body, bytes):
            length = (b"content-length", str(len(answer.body)).encode())
            await send(_start(kind, length))
            await send({"type": "http.response.body", "body": answer.body})
            return
        try:
            await send(_start(kind, *_STREAM_HEADERS))
            async for chunk in answer.body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await _close(answer.body)
        await send({"type": "http.response.body", "body": b""})


def _wish(scope: Scope, route: Route, body: bytes) -> Wish:
    headers = Headers(scope=scope)
    return Wish(
        caller=caller_of(scope),
        priority=read_priority(headers.get("x-cortex-priority")),
        route=route,
        body=body,
    )


def mark_not_admitted(app: ASGIApp) -> ASGIApp:
    """Return `app` with what tells a gateway whether errors of inference paths are worth a retry.

    `x-cortex-not-admitted` is on every refusal, `x-cortex-engine-died` on what an engine's death
    has ended.
    """

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        # No coroutine of its own, which every piece of a stream would have to go through.
        def send_marked(message: Message) -> Awaitable[None]:
            mark = None
            if message["type"] == "http.response.start" and message["status"] >= 400:
                mark = _mark(scope.get(_LEASE_KEY), message["status"])
            if mark is not None:
                message = {**message, "headers": [*message.get("headers", ()), mark]}
            return send(message)

        is_inference = scope["type"] == "http" and scope["path"] in _PATHS
        await app(scope, receive, send_marked if is_inference else send)

    return marked


def _mark(lease: Lease | None, status: int) -> tuple[bytes, bytes] | None:
    """Return the header of an error of a request that had `lease`."""
    if lease is None:
        return NOT_ADMITTED
    return ENGINE_DIED if status >= 500 and lease.has_died else None


async def _end_badly(
    error: RequestError, scope: Scope, send: Send, *, is_raised: bool = True
) -> None:
    """End a stream that has begun with one error event; raise if nothing was sent yet."""
    exchange = exchange_of(scope)
    if exchange.is_started:
        event = error_event(error, Dialect.OPENAI, exchange.request_id)
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    elif is_raised:
        raise error


def _start(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


async def _close(stream: AsyncIterator[bytes]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
