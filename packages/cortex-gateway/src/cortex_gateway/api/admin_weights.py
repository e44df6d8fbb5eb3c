"""Weights on the disks of nodes: `/admin/nodes/{name}/weights`."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_body
from cortex_core.errors import DrainingError, RequestError
from cortex_core.ids import ModelId, NodeName
from cortex_core.server.exchange import Cut, Exchange, exchange_of
from cortex_core.sse import encode_event
from cortex_core.wire.admin import DONE_EVENT, ERROR_EVENT, PROGRESS_EVENT
from cortex_core.wire.weights import PullCommand, PullRequest
from cortex_gateway.api.admin_asked import answer, asked
from cortex_gateway.control.operations import Operations
from cortex_gateway.control.pulling import Pull
from cortex_gateway.ports import Store

_COMMAND = msgspec.json.Decoder(PullCommand, strict=False)

_STREAM = "text/event-stream"


def routes(store: Store, operations: Operations) -> list[Route]:
    """Return the routes.

    Args:
        store: where aliases are looked up.
        operations: asks the neurons.
    """

    def model_of(name: str) -> ModelId:
        # A model may be brought before it is in the catalogue.
        return store.catalogue.aliases.get(name, ModelId(name))

    async def listing(request: Request) -> Response:
        name = NodeName(request.path_params["name"])
        client = operations.client(name)
        return answer(await operations.send(name, client.weights))

    async def pull(request: Request) -> Response:
        command = await asked(request, _COMMAND)
        name = NodeName(request.path_params["name"])
        wanted = PullRequest(model_id=model_of(command.model), revision=command.revision)
        if not command.wait:
            client = operations.client(name)
            news = await operations.send(name, lambda: client.pull(wanted, is_waited_for=False))
            return answer(news, 202)
        pulling = Pull(operations, name, wanted)
        if _STREAM in request.headers.get("accept", ""):
            events = _events(pulling, exchange_of(request.scope))
            return StreamingResponse(events, media_type=_STREAM)
        return answer(await pulling.result())

    async def remove(request: Request) -> Response:
        name = NodeName(request.path_params["name"])
        model = model_of(request.path_params["id"])
        client = operations.client(name)
        work = operations.send(name, lambda: client.remove_weights(model))
        return answer(await operations.run(work, f"remove {model} from {name}"))

    return [
        Route("/admin/nodes/{name}/weights", listing, methods=["GET"]),
        Route("/admin/nodes/{name}/weights/pull", pull, methods=["POST"]),
        Route("/admin/nodes/{name}/weights/{id:path}", remove, methods=["DELETE"]),
    ]


async def _events(pulling: Pull, exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Yield the events of a pull, down to the one that ends them."""

    def failed(error: RequestError) -> bytes:
        body = error_body(error, Dialect.OPENAI, exchange.request_id)
        return encode_event(body, event=ERROR_EVENT)

    try:
        async for news in pulling.follow():
            yield encode_event(encode_json(news), event=PROGRESS_EVENT)
        done = await pulling.result()
    except RequestError as error:
        yield failed(error)
        return
    except asyncio.CancelledError:
        if exchange.cut is not Cut.DRAIN:
            raise
        # The answer is to end here, in good order, which an error would prevent.
        yield failed(DrainingError("this process is going down; the download goes on"))
        return
    yield encode_event(encode_json(done), event=DONE_EVENT)
