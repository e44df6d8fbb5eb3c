"""The control API of a neuron, as a client."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import NotFoundError, UpstreamError
from cortex_core.ids import BootId, ModelId, NodeName
from cortex_core.node import (
    NodeFacts,
    NodeReport,
    facts_from_wire,
    reachable_url,
    report_from_wire,
)
from cortex_core.replica import Replica
from cortex_core.sse import SseDecoder, SseEvent
from cortex_core.wire.fit import FitReport
from cortex_core.wire.neuron import (
    HEALTH_EVENT,
    MODEL_EVENT,
    SNAPSHOT_EVENT,
    CordonRequest,
    Discovery,
    EndpointAnswer,
    Health,
    LoadRequest,
    ModelReport,
    PinRequest,
    SleepRequest,
    Snapshot,
    UnloadRequest,
    WakeRequest,
)
from cortex_core.wire.weights import PullRequest, WeightsList, WeightsNews
from cortex_gateway.clients.node_errors import NOT_THERE, as_errors, check_token, command_error
from cortex_gateway.ports import NodeNews
from cortex_gateway.proxy.access import NEURON, Accesses

POLL_TIMEOUT_S = 1.0
"""A neuron answers `/health` within 50 ms whatever its engines do."""

MARK_TIMEOUT_S = 5.0
"""A neuron notes a pin or a cordon at once, and may write it to its disk."""

FIT_TIMEOUT_S = 60.0
"""A neuron reads the headers of weights, perhaps from a slow disk."""

PULL_TIMEOUT_S = 24 * 3600.0
"""The largest models take hours; a node that goes down meanwhile ends the wait."""

EVENTS_SILENCE_S = 6.0
"""A neuron sends its readings every second, and a comment after 5 s if it has none."""

_EVENTS = frozenset({SNAPSHOT_EVENT, MODEL_EVENT, HEALTH_EVENT})

_GONE = "unloaded"

T = TypeVar("T")

Headers = Sequence[tuple[str, str]]


# Lenient: a neuron that writes a number as text, or a whole one as 1.0, is understood.
_DISCOVERY = msgspec.json.Decoder(Discovery, strict=False)
_HEALTH = msgspec.json.Decoder(Health, strict=False)
_MODELS = msgspec.json.Decoder(tuple[ModelReport, ...], strict=False)
_ENDPOINT = msgspec.json.Decoder(EndpointAnswer)
_MODEL = msgspec.json.Decoder(ModelReport, strict=False)
_FIT = msgspec.json.Decoder(FitReport, strict=False)
_WEIGHTS = msgspec.json.Decoder(WeightsList, strict=False)
_WEIGHTS_NEWS = msgspec.json.Decoder(WeightsNews, strict=False)
_SNAPSHOT = msgspec.json.Decoder(Snapshot, strict=False)


class _Nothing(msgspec.Struct, frozen=True):
    """The body of a command that takes none."""


_NOTHING = _Nothing()


class NodePatience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a neuron's control API may be silent, in seconds."""

    poll_s: float = POLL_TIMEOUT_S
    """For a whole answer, and for the head of the event stream."""
    events_s: float = EVENTS_SILENCE_S
    """Within the event stream."""
    mark_s: float = MARK_TIMEOUT_S
    """For the answer to a command that only notes something."""
    load_s: float
    """For the answer to a load, and to an unload once its requests have ended."""


def node_client_maker(
    session: aiohttp.ClientSession,
    patience: Callable[[], NodePatience],
    accesses: Accesses | None = None,
) -> Callable[[NodeName, str], "HttpNodeClient"]:
    """Return what makes the client of a node from its name and base URL.

    Args:
        session: of the process.
        patience: returns what holds at the moment.
        accesses: how nodes are spoken to, as it is at the moment of a request.
    """
    known: Accesses = {} if accesses is None else accesses

    def make(name: NodeName, url: str) -> HttpNodeClient:
        return HttpNodeClient(
            name=name,
            endpoint=url,
            session=session,
            patience=patience,
            headers=lambda: known.get(name, NEURON).headers,
        )

    return make


class HttpNodeClient:
    """`NodeClient` over aiohttp.

    A neuron of the given kind has no boot ids. Its uptime going backwards tells as well that it
    was restarted, so a boot id is made up from that.
    """

    def __init__(
        self,
        *,
        name: NodeName,
        endpoint: str,
        session: aiohttp.ClientSession,
        patience: Callable[[], NodePatience],
        headers: Callable[[], Headers] = lambda: (),
    ) -> None:
        self._name = name
        self._headers = headers
        self._endpoint = endpoint.rstrip("/")
        self._session = session
        self._patience = patience
        self._lives = _Lives()
        self._endpoints: dict[ModelId, str] = {}

    async def discovery(self) -> NodeFacts:
        """Ask `/discovery`; see `NodeClient`."""
        return self._facts(await self._get("/discovery", _DISCOVERY))

    async def report(self) -> NodeReport:
        """Ask `/health` and `/models`; see `NodeClient`."""
        # One after the other: two connections to save a millisecond are no bargain. Health
        # first, so that a model that it does not mention yet is merely without a load.
        health = await self._get("/health", _HEALTH)
        models = await self._get("/models", _MODELS)
        report = self._report(models, health)
        if health.boot_id is not None:
            return report
        # A neuron of the given kind may serve each model at an address of its own.
        replicas = [await self._with_endpoint(replica) for replica in report.replicas]
        return msgspec.structs.replace(report, replicas=tuple(replicas))

    async def events(self) -> AsyncGenerator[NodeNews, None]:
        """Subscribe to `/events`; see `NodeClient`.

        Each item has a full report: single events are joined with what came before them.
        """
        stream = _EventState()
        with as_errors(self._name):
            async with asyncio.timeout(self._patience().poll_s):
                response = await self._session.get(
                    f"{self._endpoint}/events",
                    headers=[("accept", "text/event-stream"), *self._headers()],
                    allow_redirects=False,
                )
        try:
            check_token(self._name, response.status)
            _check_is_stream(self._name, response)
            async with aclosing(self._decoded(response)) as events:
                async for event in events:
                    with as_errors(self._name):
                        discovery = stream.take(event)
                    if stream.health is not None:
                        facts = None if discovery is None else self._facts(discovery)
                        report = self._report(tuple(stream.models.values()), stream.health)
                        yield NodeNews(facts=facts, report=report)
        finally:
            response.close()

    async def load(self, request: LoadRequest) -> None:
        """Load a model; see `NodeClient`."""
        await self._command("/models/load", request, self._patience().load_s)

    async def unload(self, request: UnloadRequest) -> None:
        """Unload a model; see `NodeClient`."""
        limit_s = self._patience().load_s + (request.drain_timeout_s or 0.0)
        await self._command("/models/unload", request, limit_s)

    async def sleep(self, request: SleepRequest) -> None:
        """Put a model to sleep; see `NodeClient`."""
        limit_s = self._patience().load_s + (request.drain_timeout_s or 0.0)
        await self._command("/models/sleep", request, limit_s)

    async def wake(self, request: WakeRequest) -> None:
        """Wake a model; see `NodeClient`."""
        await self._command("/models/wake", request, self._patience().load_s)

    async def pin(self, request: PinRequest) -> None:
        """Mark a model as one that stays; see `NodeClient`."""
        await self._command("/models/pin", request, self._patience().mark_s)

    async def cordon(self, request: CordonRequest) -> None:
        """Mark the node as one that takes no new models; see `NodeClient`."""
        await self._command("/cordon", request, self._patience().mark_s)

    async def recycle(self) -> None:
        """Have the node's engine processes replaced; see `NodeClient`."""
        await self._command("/recycle", _NOTHING, self._patience().load_s)

    async def fit(self, request: LoadRequest) -> FitReport:
        """Ask whether a load would work; see `NodeClient`."""
        body = await self._command("/models/fit", request, FIT_TIMEOUT_S)
        with as_errors(self._name):
            return _FIT.decode(body)

    async def weights(self) -> WeightsList:
        """Ask `/weights`; see `NodeClient`."""
        body = await self._command("/weights", _NOTHING, FIT_TIMEOUT_S, method="GET")
        with as_errors(self._name):
            return _WEIGHTS.decode(body)

    async def pull(self, request: PullRequest, *, is_waited_for: bool) -> WeightsNews:
        """Have a model downloaded; see `NodeClient`."""
        query = "" if is_waited_for else "?wait=false"
        body = await self._command(f"/weights/pull{query}", request, PULL_TIMEOUT_S)
        with as_errors(self._name):
            return _WEIGHTS_NEWS.decode(body)

    async def remove_weights(self, model: ModelId) -> WeightsNews:
        """Have a model removed from the disk; see `NodeClient`."""
        path = f"/weights/{quote(model, safe='/')}"
        body = await self._command(path, _NOTHING, self._patience().load_s, method="DELETE")
        with as_errors(self._name):
            return _WEIGHTS_NEWS.decode(body)

    async def _command(
        self, path: str, request: msgspec.Struct, limit_s: float, *, method: str = "POST"
    ) -> bytes:
        with as_errors(self._name):
            async with (
                asyncio.timeout(limit_s),
                self._session.request(
                    method,
                    f"{self._endpoint}{path}",
                    data=_encode_command(request),
                    headers=[("content-type", "application/json"), *self._headers()],
                    allow_redirects=False,
                ) as response,
            ):
                body = await response.read()
        check_token(self._name, response.status)
        if response.status >= 300:
            raise command_error(self._name, path, response.status, body)
        return body

    async def _with_endpoint(self, replica: Replica) -> Replica:
        """Ask once for the address of a model, for as long as it stays loaded."""
        model = replica.id.model
        if not replica.is_servable:
            self._endpoints.pop(model, None)
            return replica
        if model not in self._endpoints:
            try:
                answer = await self._get(f"/models/{quote(model, safe='')}/endpoint", _ENDPOINT)
            except UpstreamError:
                # Without that path, or without an answer for this model, the node's own serves.
                return replica
            self._endpoints[model] = reachable_url(answer.url, self._endpoint)
        return msgspec.structs.replace(replica, endpoint=self._endpoints[model])

    async def _get(self, path: str, decoder: msgspec.json.Decoder[T]) -> T:
        with as_errors(self._name):
            async with (
                asyncio.timeout(self._patience().poll_s),
                self._session.get(
                    self._endpoint + path, headers=self._headers(), allow_redirects=False
                ) as response,
            ):
                body = await response.read()
            check_token(self._name, response.status)
            if response.status != 200:
                raise UpstreamError(f"{self._name} answers {path} with status {response.status}")
            return decoder.decode(body)

    async def _decoded(self, response: aiohttp.ClientResponse) -> AsyncGenerator[SseEvent, None]:
        decoder = SseDecoder()
        while True:
            with as_errors(self._name):
                async with asyncio.timeout(self._patience().events_s):
                    chunk = await response.content.readany()
            if not chunk:
                return
            for event in decoder.feed(chunk):
                if event.event in _EVENTS:
                    yield event

    def _facts(self, discovery: Discovery) -> NodeFacts:
        facts = facts_from_wire(discovery)
        return msgspec.structs.replace(facts, boot_id=self._lives.of_discovery(facts.boot_id))

    def _report(self, models: tuple[ModelReport, ...], health: Health) -> NodeReport:
        report = report_from_wire(self._name, models, health)
        boot_id = self._lives.of_health(report.boot_id, health.uptime_secs)
        return msgspec.structs.replace(report, boot_id=boot_id)


class _EventState:
    """What an event stream has told so far."""

    def __init__(self) -> None:
        self.health: Health | None = None
        """`None` until the snapshot came."""
        self.models: dict[str, ModelReport] = {}

    def take(self, event: SseEvent) -> Discovery | None:
        """Take one event and return the discovery, when it has one."""
        if event.event == MODEL_EVENT:
            model = _MODEL.decode(event.data)
            self.models.pop(model.id, None)
            if model.status != _GONE:
                self.models[model.id] = model
        elif event.event == HEALTH_EVENT:
            self.health = _HEALTH.decode(event.data)
        else:
            snapshot = _SNAPSHOT.decode(event.data)
            self.health = snapshot.health
            self.models = {model.id: model for model in snapshot.models}
            return snapshot.discovery
        return None


class _Lives:
    """The boot id of the neuron's present life, told or made up."""

    def __init__(self) -> None:
        self._told: BootId | None = None
        self._uptime_s = 0.0
        self._restarts = 0

    def of_discovery(self, told: BootId | None) -> BootId:
        self._told = told or self._told
        return self._current()

    def of_health(self, told: BootId | None, uptime_s: float) -> BootId:
        if uptime_s < self._uptime_s:
            self._told = None
            self._restarts += 1
        self._uptime_s = uptime_s
        self._told = told or self._told
        return self._current()

    def _current(self) -> BootId:
        return self._told or BootId(f"restart-{self._restarts}")


def _encode_command(request: msgspec.Struct) -> bytes:
    """Leave out what is not set: a neuron of the given kind may know fewer fields."""
    fields = msgspec.structs.asdict(request)
    return encode_json({k: v for k, v in fields.items() if v is not None and v != {}})


def _check_is_stream(name: NodeName, response: aiohttp.ClientResponse) -> None:
    if response.status in NOT_THERE:
        raise NotFoundError(f"{name} has no event stream")
    if response.status != 200 or response.content_type != "text/event-stream":
        raise UpstreamError(
            f"{name} answers /events with status {response.status}, {response.content_type}"
        )
