"""The control paths: what is here, load, unload, where to find a model."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.dialect import Dialect, error_body
from cortex_core.errors import ConflictError, InvalidRequestError, NotFoundError, RequestError
from cortex_core.group import Peer
from cortex_core.harness import Bounds, ModelSpec
from cortex_core.ids import DeviceIndex, ModelId, RequestId
from cortex_core.replica import ReplicaStatus
from cortex_core.server.clock import Clock
from cortex_core.server.exchange import request_id_of
from cortex_core.sse import encode_comment, encode_event
from cortex_core.units import bytes_from_mib
from cortex_core.wire.neuron import (
    EndpointAnswer,
    LoadRequest,
    SleepRequest,
    StatusAnswer,
    UnloadRequest,
    WakeRequest,
)
from neuron.api.body import read_body
from neuron.api.stream import EVENT_STREAM, EventStream
from neuron.lifecycle.admission import following_error
from neuron.settings import NeuronSettings
from neuron.supervisor import reports
from neuron.supervisor.life import Life
from neuron.supervisor.node import Node
from neuron.supervisor.waiting import within

_LOAD_DECODER = msgspec.json.Decoder(LoadRequest)
_UNLOAD_DECODER = msgspec.json.Decoder(UnloadRequest)
_SLEEP_DECODER = msgspec.json.Decoder(SleepRequest)
_WAKE_DECODER = msgspec.json.Decoder(WakeRequest)


class ControlApi:
    """Endpoints of the control paths.

    Args:
        node: what is controlled.
        settings: bounds.
        clock: times the heartbeats.
    """

    def __init__(self, node: Node, settings: NeuronSettings, clock: Clock) -> None:
        self._node = node
        self._settings = settings
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route("/discovery", self.discovery, methods=["GET"]),
            Route("/models", self.models, methods=["GET"]),
            Route("/models/load", self.load, methods=["POST"]),
            Route("/models/fit", self.fit, methods=["POST"]),
            Route("/models/unload", self.unload, methods=["POST"]),
            Route("/models/sleep", self.sleep, methods=["POST"]),
            Route("/models/wake", self.wake, methods=["POST"]),
            Route("/recycle", self.recycle, methods=["POST"]),
            Route("/models/{model:path}/endpoint", self.endpoint, methods=["GET"]),
        ]

    async def discovery(self, request: Request) -> Response:
        """Answer what never changes."""
        return json_answer(self._node.discovery())

    async def models(self, request: Request) -> Response:
        """Answer all models."""
        return json_answer(self._node.models())

    async def load(self, request: Request) -> Response:
        """Load a model, or join; the load goes on when the caller leaves."""
        wanted = decode_request(await read_body(request.receive), _LOAD_DECODER)
        spec, is_waited_for = _spec(wanted), flag(request, "wait")
        life = await self._node.supervisor.load(spec, is_automatic=wanted.automatic)
        if EVENT_STREAM in request.headers.get("accept", ""):
            return EventStream(self._progress(life, request_id_of(request.scope)))
        if not is_waited_for:
            await life.accepted.wait()
            if not life.loaded.done():
                return json_answer(StatusAnswer(status="loading"), status=202)
        # Shielded: a caller that leaves must not take the load with it.
        await asyncio.shield(life.loaded)
        return json_answer(StatusAnswer(status="loaded"))

    async def fit(self, request: Request) -> Response:
        """Answer whether such a load would work; nothing is done."""
        spec = _spec(decode_request(await read_body(request.receive), _LOAD_DECODER))
        if spec.base is not None:
            raise InvalidRequestError("an adapter fits where its base does; ask for that one")
        return json_answer(await self._node.fitting.report(spec))

    async def unload(self, request: Request) -> Response:
        """Unload a model, and answer when its memory is free."""
        wanted = decode_request(await read_body(request.receive), _UNLOAD_DECODER)
        drain_s = self._drain_s(wanted.drain_timeout_s)
        model = ModelId(wanted.model_id)
        following = following_error(self._node.supervisor.state(model).asked)
        if following is not None:
            raise ConflictError(f"{following.message}; unload it there")
        await self._node.supervisor.unload(model, 0.0 if wanted.force else drain_s)
        return json_answer(StatusAnswer(status="unloaded"))

    async def sleep(self, request: Request) -> Response:
        """Put a model to sleep, and answer when its device memory is free."""
        wanted = decode_request(await read_body(request.receive), _SLEEP_DECODER)
        drain_s = self._drain_s(wanted.drain_timeout_s)
        await self._node.supervisor.sleep(ModelId(wanted.model_id), wanted.level, drain_s)
        return json_answer(StatusAnswer(status="sleeping"))

    async def wake(self, request: Request) -> Response:
        """Wake a model, or join; the wake goes on when the caller leaves."""
        wanted = decode_request(await read_body(request.receive), _WAKE_DECODER)
        life = await self._node.supervisor.wake(ModelId(wanted.model_id))
        if EVENT_STREAM in request.headers.get("accept", ""):
            return EventStream(self._progress(life, request_id_of(request.scope)))
        await asyncio.shield(life.loaded)
        return json_answer(StatusAnswer(status="loaded"))

    async def recycle(self, request: Request) -> Response:
        """Replace all engines, and answer when their models are back."""
        await self._node.supervisor.recycle()
        return json_answer(StatusAnswer(status="recycled"))

    async def endpoint(self, request: Request) -> Response:
        """Answer where a loaded model is served: at the address that was just asked."""
        model = ModelId(request.path_params["model"])
        state = self._node.supervisor.state(model)
        if state.status is not ReplicaStatus.LOADED:
            raise NotFoundError(f"{model!r} is {state.status.value}", param="model")
        host, port = request.scope["server"]
        name = f"[{host}]" if ":" in host else host
        return json_answer(EndpointAnswer(url=f"http://{name}:{port}"))

    def _drain_s(self, wanted_s: float | None) -> float:
        if wanted_s is None:
            return self._settings.drain_timeout_s
        if wanted_s < 0:
            raise InvalidRequestError("use 0 or more seconds", param="drain_timeout_s")
        return wanted_s

    async def _progress(self, life: Life, request_id: RequestId) -> AsyncGenerator[bytes, None]:
        told = None
        while not life.loaded.done():
            progress = reports.progress(life.state.progress)
            if progress is not None and progress != told:
                told = progress
                yield encode_event(encode_json(progress), event="progress")
                continue
            if not await within(self._clock, self._settings.heartbeat_s, life.changed.wait()):
                yield encode_comment("loading")
        error = life.loaded.exception()
        if error is None:
            yield encode_event(encode_json(StatusAnswer(status="loaded")), event="done")
        elif isinstance(error, RequestError):
            yield encode_event(error_body(error, Dialect.OPENAI, request_id), event="error")


def json_answer(value: object, status: int = 200) -> Response:
    """Return `value` as a JSON answer."""
    return Response(encode_json(value), status_code=status, media_type="application/json")


def flag(request: Request, name: str) -> bool:
    """Return a query parameter that is true unless it says otherwise."""
    value = request.query_params.get(name, "true").lower()
    if value not in ("true", "false", "1", "0"):
        raise InvalidRequestError(f"{value[:20]!r} is not true or false", param=name)
    return value in ("true", "1")


def _spec(wanted: LoadRequest) -> ModelSpec:
    if not wanted.model_id:
        raise InvalidRequestError("name a model", param="model_id")
    for name, least in (("tensor_parallel", 1), ("pipeline_parallel", 1), ("vram_mb", 0)):
        value = getattr(wanted, name)
        if value is not None and value < least:
            raise InvalidRequestError(f"{value} is too small", param=name)
    _check_adapter(wanted)
    peers = tuple(
        Peer(
            endpoint=peer.endpoint.rstrip("/"),
            devices=tuple(DeviceIndex(index) for index in peer.devices or ()),
        )
        for peer in wanted.peers or ()
    )
    if len({peer.endpoint for peer in peers}) != len(peers):
        raise InvalidRequestError("a peer is named twice; name each once", param="peers")
    if any(not peer.endpoint.startswith(("http://", "https://")) for peer in peers):
        raise InvalidRequestError("a peer's endpoint begins with http://", param="peers")
    total = None if wanted.vram_mb is None else bytes_from_mib(wanted.vram_mb)
    return ModelSpec(
        model=ModelId(wanted.model_id),
        harness=wanted.harness,
        devices=tuple(DeviceIndex(index) for index in wanted.devices or ()),
        quant=wanted.quant,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        vram_bytes=None if total is None else -(-total // (1 + len(peers))),
        peers=peers,
        engine=wanted.engine,
        bounds=_bounds(wanted),
        base=None if wanted.base is None else ModelId(wanted.base),
        adapter=wanted.adapter,
    )


def _check_adapter(wanted: LoadRequest) -> None:
    if wanted.base is None:
        if wanted.adapter is not None:
            raise InvalidRequestError("name the model that it adapts", param="base")
        return
    if not wanted.base or wanted.base == wanted.model_id:
        raise InvalidRequestError("name another model, which it adapts", param="base")
    of_engine = ("quant", "tensor_parallel", "pipeline_parallel", "devices", "vram_mb", "peers")
    named = [name for name in of_engine if getattr(wanted, name) is not None]
    named += [f"engine.{name}" for name in wanted.engine if name != "revision"]
    if named:
        raise InvalidRequestError(
            f"an adapter takes this from its base {wanted.base!r}; leave it out", param=named[0]
        )


def _bounds(wanted: LoadRequest) -> Bounds:
    bounds = Bounds(
        max_in_flight=wanted.max_in_flight,
        max_queue=wanted.max_queue,
        max_wait_s=wanted.max_wait_s,
        max_share=wanted.max_share,
    )
    for name, least, most in (
        ("max_in_flight", 1, None),
        ("max_queue", 0, None),
        ("max_wait_s", 0.001, None),
        ("max_share", 0.001, 1),
    ):
        value = getattr(bounds, name)
        if value is not None and (value < least or (most is not None and value > most)):
            above = "" if most is None else f" and {most} at most"
            raise InvalidRequestError(
                f"{value} does not do; use {least} at least{above}", param=name
            )
    return bounds
