"""What operators ask the gateway: `/admin/*`, read-only."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import encode_json
from cortex_core.fleet.overview import fleet_overview
from cortex_gateway.ports import Store


def routes(store: Store) -> list[Route]:
    """Return the routes of `/admin/*`.

    Args:
        store: where the snapshot and the catalogue come from.
    """

    async def fleet(_: Request) -> Response:
        overview = fleet_overview(store.state, store.catalogue)
        return Response(encode_json(overview), media_type="application/json")

    return [Route("/admin/fleet", fleet, methods=["GET"])]
