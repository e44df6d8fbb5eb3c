"""What operators do to nodes: `/admin/nodes/*`."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.ids import NodeName
from cortex_core.wire.admin import NodeCommand
from cortex_gateway.api.admin_asked import answer, asked
from cortex_gateway.control.draining import Drainage
from cortex_gateway.control.operations import Operations

_COMMAND = msgspec.json.Decoder(NodeCommand, strict=False)

Handler = Callable[[Request], Awaitable[Response]]


def routes(operations: Operations, drainage: Drainage) -> list[Route]:
    """Return the routes of `/admin/nodes/*`.

    Args:
        operations: cordons nodes.
        drainage: empties them.
    """

    def marks(*, is_cordoned: bool) -> Handler:
        async def handler(request: Request) -> Response:
            command = await asked(request, _COMMAND)
            name = NodeName(request.path_params["name"])
            return answer(
                await operations.cordon(name, is_cordoned=is_cordoned, dry_run=command.dry_run)
            )

        return handler

    async def drain(request: Request) -> Response:
        command = await asked(request, _COMMAND)
        name = NodeName(request.path_params["name"])
        return answer(await drainage.drain(name, dry_run=command.dry_run))

    return [
        Route("/admin/nodes/{name}/cordon", marks(is_cordoned=True), methods=["POST"]),
        Route("/admin/nodes/{name}/uncordon", marks(is_cordoned=False), methods=["POST"]),
        Route("/admin/nodes/{name}/drain", drain, methods=["POST"]),
    ]
