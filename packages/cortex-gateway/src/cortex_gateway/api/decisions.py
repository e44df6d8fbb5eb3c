"""Why it was done: the latest decisions, for operators."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.ids import ModelId
from cortex_core.routing.record import DecisionsAnswer
from cortex_gateway.control.journal import Journal

MAX_LIMIT = 1000


def routes(journal: Journal) -> list[Route]:
    """Return the route of `/admin/decisions`.

    Args:
        journal: where decisions are kept.
    """

    async def decisions(request: Request) -> Response:
        query = request.query_params
        model = query.get("model")
        limit = _limit(query.get("limit", "100"))
        await journal.gather()
        found = journal.find(
            request_id=query.get("request"),
            model=None if model is None else ModelId(model),
            limit=limit,
        )
        body = encode_json(DecisionsAnswer(decisions=found))
        return Response(body, media_type="application/json")

    return [Route("/admin/decisions", decisions, methods=["GET"])]


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise InvalidRequestError(f"use a number from 1 to {MAX_LIMIT}", param="limit")
    return int(text)
