"""What operators ask the gateway: the read-only part of `/admin/*`."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import decode_request
from cortex_core.fleet.overview import fleet_overview
from cortex_core.routing.explain import explain
from cortex_core.routing.resolve import resolve
from cortex_core.server.clock import Clock
from cortex_gateway.api.admin_asked import answer
from cortex_gateway.ports import Store


class ExplainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /admin/explain`."""

    model: str
    """A model or an alias."""


_EXPLAIN_REQUEST = msgspec.json.Decoder(ExplainRequest)


def routes(store: Store, clock: Clock) -> list[Route]:
    """Return the routes of `/admin/*`.

    Args:
        store: where the snapshot and the catalogue come from.
        clock: monotonic seconds.
    """

    async def fleet(_: Request) -> Response:
        return answer(fleet_overview(store.state, store.catalogue))

    async def explained(request: Request) -> Response:
        asked = decode_request(await request.body(), _EXPLAIN_REQUEST)
        state, catalogue, now = store.state, store.catalogue, clock.now()
        model = resolve(state, catalogue, asked.model).model
        rates = store.rates(now)
        return answer(explain(state, catalogue, model, policy=store.policy, rates=rates, now=now))

    return [
        Route("/admin/fleet", fleet, methods=["GET"]),
        Route("/admin/explain", explained, methods=["POST"]),
    ]
