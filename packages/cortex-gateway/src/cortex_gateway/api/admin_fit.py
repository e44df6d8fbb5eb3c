"""Whether a model would load: `POST /admin/models/{id}/fit`."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.ids import ModelId
from cortex_core.wire.fit import FitCommand
from cortex_gateway.api.admin_asked import answer, asked
from cortex_gateway.control.fitting import fit
from cortex_gateway.control.operations import Operations
from cortex_gateway.ports import Store

_COMMAND = msgspec.json.Decoder(FitCommand, strict=False)


def routes(store: Store, operations: Operations) -> list[Route]:
    """Return the route.

    Args:
        store: the fleet and the catalogue.
        operations: asks the neurons.
    """

    async def fitted(request: Request) -> Response:
        command = await asked(request, _COMMAND)
        name = request.path_params["id"]
        # A model may be tried before it is in the catalogue.
        model = store.catalogue.aliases.get(name, ModelId(name))
        return answer(await fit(store, operations, model, command.node))

    return [Route("/admin/models/{id:path}/fit", fitted, methods=["POST"])]
