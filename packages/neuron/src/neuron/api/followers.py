"""The paths by which the head of a copy over several nodes has its followers."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import decode_request
from cortex_core.errors import InvalidRequestError
from cortex_core.group import Seat
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.server.exchange import request_id_of
from cortex_core.units import bytes_from_mib
from cortex_core.wire.neuron import FollowerRequest, StatusAnswer
from neuron.api.body import read_body
from neuron.api.control import json_answer
from neuron.api.stream import EventStream
from neuron.supervisor.followers import Followers

_DECODER = msgspec.json.Decoder(FollowerRequest)


class FollowersApi:
    """Endpoints of `/followers`.

    Args:
        followers: what is asked for.
    """

    def __init__(self, followers: Followers) -> None:
        self._followers = followers

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route("/followers", self.follow, methods=["POST"]),
            Route("/followers/{group}/settle", self.settle, methods=["POST"]),
            Route("/followers/{group}", self.end, methods=["DELETE"]),
        ]

    async def follow(self, request: Request) -> Response:
        """Start a follower that lives for as long as the caller listens."""
        wanted = decode_request(await read_body(request.receive), _DECODER)
        return EventStream(self._followers.follow(_spec(wanted), request_id_of(request.scope)))

    async def settle(self, request: Request) -> Response:
        """Take the head's word that it is up, and answer when its follower counts as loaded."""
        await self._followers.settle(request.path_params["group"])
        return json_answer(StatusAnswer(status="loaded"))

    async def end(self, request: Request) -> Response:
        """End a follower, and answer when its memory is free."""
        await self._followers.end(request.path_params["group"])
        return json_answer(StatusAnswer(status="unloaded"))


def _spec(wanted: FollowerRequest) -> ModelSpec:
    if not 0 < wanted.rank < wanted.nodes:
        raise InvalidRequestError(
            f"rank {wanted.rank} of {wanted.nodes} nodes is no follower's", param="rank"
        )
    return ModelSpec(
        model=ModelId(wanted.model_id),
        harness=wanted.harness,
        devices=tuple(DeviceIndex(index) for index in wanted.devices or ()),
        quant=wanted.quant,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        vram_bytes=None if wanted.vram_mb is None else bytes_from_mib(wanted.vram_mb),
        engine=wanted.engine,
        seat=Seat(
            group=wanted.group,
            rank=wanted.rank,
            nodes=wanted.nodes,
            address=wanted.address,
            port=wanted.port,
            head=wanted.head or wanted.address,
        ),
    )
