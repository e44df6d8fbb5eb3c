"""The paths of weights: what is on the disk, bring, remove."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.dialect import Dialect, error_body
from cortex_core.errors import RequestError
from cortex_core.ids import RequestId
from cortex_core.server.clock import Clock
from cortex_core.server.exchange import request_id_of
from cortex_core.sse import encode_comment, encode_event
from cortex_core.wire.weights import PullRequest, WeightsNews
from neuron.api.body import read_body
from neuron.api.control import flag, json_answer
from neuron.api.stream import EVENT_STREAM, EventStream
from neuron.supervisor.node import Node
from neuron.supervisor.waiting import within
from neuron.weights.downloads import Download

_PULL_DECODER = msgspec.json.Decoder(PullRequest)


class WeightsApi:
    """Endpoints of `/weights`.

    Args:
        node: whose weights.
        heartbeat_s: silence after which a stream has a comment.
        clock: times the heartbeats.
    """

    def __init__(self, node: Node, heartbeat_s: float, clock: Clock) -> None:
        self._node = node
        self._heartbeat_s = heartbeat_s
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route("/weights", self.listing, methods=["GET"]),
            Route("/weights/pull", self.pull, methods=["POST"]),
            Route("/weights/{model:path}", self.remove, methods=["DELETE"]),
        ]

    async def listing(self, request: Request) -> Response:
        """Answer what is on the disk and on its way there."""
        return json_answer(await self._node.weights.listing())

    async def pull(self, request: Request) -> Response:
        """Download a model, or join; the download goes on when the caller leaves."""
        wanted = decode_request(await read_body(request.receive), _PULL_DECODER)
        is_waited_for = flag(request, "wait")
        download = self._node.weights.pull(wanted.model_id, wanted.revision)
        if EVENT_STREAM in request.headers.get("accept", ""):
            return EventStream(self._progress(download, request_id_of(request.scope)))
        if not is_waited_for:
            return json_answer(download.news, status=202)
        # Shielded: a caller that leaves must not take the download with it.
        await asyncio.shield(download.done)
        return json_answer(_ready(download))

    async def remove(self, request: Request) -> Response:
        """Remove a model from the disk, and answer when it is gone."""
        model = request.path_params["model"]
        await self._node.weights.remove(model)
        return json_answer(WeightsNews(id=model, revision="", status="removed"))

    async def _progress(
        self, download: Download, request_id: RequestId
    ) -> AsyncGenerator[bytes, None]:
        told = None
        while not download.done.done():
            changed, news = download.changed, download.news
            if news != told:
                told = news
                yield encode_event(encode_json(news), event="progress")
            elif not await within(self._clock, self._heartbeat_s, changed.wait()):
                yield encode_comment("downloading")
        error = download.done.exception()
        if error is None:
            yield encode_event(encode_json(_ready(download)), event="done")
        elif isinstance(error, RequestError):
            yield encode_event(error_body(error, Dialect.OPENAI, request_id), event="error")


def _ready(download: Download) -> WeightsNews:
    # What it says of itself comes a moment after it is done.
    return msgspec.structs.replace(
        download.news, status="ready", eta_s=None, bytes_per_s=None, error=None
    )
