"""What operators do to models: `/admin/models/*`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_body
from cortex_core.errors import DrainingError, RequestError
from cortex_core.ids import ModelId, NodeName
from cortex_core.routing.resolve import resolve
from cortex_core.server.exchange import Cut, Exchange, exchange_of
from cortex_core.sse import encode_event
from cortex_core.wire.admin import (
    DONE_EVENT,
    ERROR_EVENT,
    PROGRESS_EVENT,
    Action,
    ModelAnswer,
    ModelCommand,
)
from cortex_gateway.api.admin_asked import answer, asked
from cortex_gateway.control.loading import Loading
from cortex_gateway.control.operations import Operations
from cortex_gateway.ports import Store

_COMMAND = msgspec.json.Decoder(ModelCommand, strict=False)

_STREAM = "text/event-stream"

Handler = Callable[[Request], Awaitable[Response]]


def routes(store: Store, operations: Operations, loading: Loading) -> list[Route]:
    """Return the routes of `/admin/models/*`.

    Args:
        store: where names are looked up.
        operations: does what is asked for, but for loads.
        loading: has models loaded.
    """

    def model_of(request: Request) -> ModelId:
        # The server decodes the path, so that raw and percent-encoded ids look alike here.
        return resolve(store.state, store.catalogue, request.path_params["id"]).model

    def performs(action: Action) -> Handler:
        async def handler(request: Request) -> Response:
            command = await asked(request, _COMMAND)
            return answer(await operations.perform(action, model_of(request), command))

        return handler

    async def load(request: Request) -> Response:
        command = await asked(request, _COMMAND)
        model = model_of(request)
        if command.dry_run:
            return answer(loading.foreseen(model, command))
        if not command.wait:
            found = loading.ask(model, command.node)
            return answer(found, 202 if found.nodes[0].changed else 200)
        if _STREAM in request.headers.get("accept", ""):
            loading.check(model, command.node)
            events = _events(loading, model, command.node, exchange_of(request.scope))
            return StreamingResponse(events, media_type=_STREAM)
        return answer(await loading.load(model, command.node))

    actions = [action for action in Action if action is not Action.LOAD]
    return [
        Route("/admin/models/{id:path}/load", load, methods=["POST"]),
        *(
            Route(f"/admin/models/{{id:path}}/{action}", performs(action), methods=["POST"])
            for action in actions
        ),
    ]


async def _events(
    loading: Loading, model: ModelId, node: NodeName | None, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a load, down to the one that ends them."""

    def failed(error: RequestError) -> bytes:
        body = error_body(error, Dialect.OPENAI, exchange.request_id)
        return encode_event(body, event=ERROR_EVENT)

    before = loading.where(model, node)
    try:
        async with aclosing(loading.follow(model, node)) as source:
            async for news in source:
                yield encode_event(encode_json(news), event=PROGRESS_EVENT)
    except RequestError as error:
        yield failed(error)
        return
    except asyncio.CancelledError:
        if exchange.cut is not Cut.DRAIN:
            raise
        # The answer is to end here, in good order, which an error would prevent.
        yield failed(DrainingError("this process is going down; the load goes on"))
        return
    done: ModelAnswer = loading.answer(
        model, loading.where(model, node) or node, changed=before is None
    )
    yield encode_event(encode_json(done), event=DONE_EVENT)
