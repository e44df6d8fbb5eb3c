"""What operators mark: models that stay, and a node that takes no new ones."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import decode_request
from cortex_core.errors import InvalidRequestError
from cortex_core.ids import ModelId
from cortex_core.wire.neuron import CordonRequest, PinRequest, StatusAnswer
from neuron.api.body import read_body
from neuron.api.control import json_answer
from neuron.supervisor.node import Node

_PIN_DECODER = msgspec.json.Decoder(PinRequest)
_CORDON_DECODER = msgspec.json.Decoder(CordonRequest)


class MarksApi:
    """Endpoints that mark; both answer alike however often they are asked.

    Args:
        node: what is marked.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route("/models/pin", self.pin, methods=["POST"]),
            Route("/cordon", self.cordon, methods=["POST"]),
        ]

    async def pin(self, request: Request) -> Response:
        """Mark a model, and answer when that is on the disk."""
        wanted = decode_request(await read_body(request.receive), _PIN_DECODER)
        if not wanted.model_id:
            raise InvalidRequestError("name a model", param="model_id")
        await self._node.pin(ModelId(wanted.model_id), wanted.pinned)
        return json_answer(StatusAnswer(status="pinned" if wanted.pinned else "unpinned"))

    async def cordon(self, request: Request) -> Response:
        """Mark the node, and answer when that is on the disk."""
        wanted = decode_request(await read_body(request.receive), _CORDON_DECODER)
        await self._node.cordon(wanted.cordoned)
        return json_answer(StatusAnswer(status="cordoned" if wanted.cordoned else "uncordoned"))
