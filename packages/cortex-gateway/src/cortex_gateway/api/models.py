"""`GET /v1/models` and `GET /v1/models/{id}`, for the SDKs of both dialects.

Sources: OpenAI API reference "Models"; Anthropic API reference "Models", whose paging applies
when a caller asks for it (both read November 2026).
"""

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError, ModelNotFoundError
from cortex_core.fleet.views import model_list
from cortex_core.wire.openai.models import ModelList
from cortex_gateway.ports import Store

DEFAULT_LIMIT = 20
"""Models on a page when a caller asks for paging but not for a size; Anthropic's number."""

MAX_LIMIT = 1000
"""Anthropic's bound."""


class Paging(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the list a caller wants."""

    limit: int = DEFAULT_LIMIT
    after_id: str | None = None
    before_id: str | None = None


def routes(store: Store, created: int) -> list[Route]:
    """Return the routes of `/v1/models`.

    Args:
        store: where the snapshot and the catalogue come from.
        created: epoch seconds to show as every model's creation time.
    """

    async def listed(request: Request) -> Response:
        paging = paging_from_query(request.query_params)
        models = model_list(store.state, store.catalogue, created)
        return _json(models if paging is None else page(models, paging))

    async def one(request: Request) -> Response:
        # The server decodes the path, so that raw and percent-encoded ids look alike here.
        wanted = request.path_params["id"]
        for entry in model_list(store.state, store.catalogue, created).data:
            if entry.id == wanted:
                return _json(entry)
        raise ModelNotFoundError(wanted)

    return [
        Route("/v1/models", listed, methods=["GET"]),
        Route("/v1/models/{id:path}", one, methods=["GET"]),
    ]


def paging_from_query(query: Mapping[str, str]) -> Paging | None:
    """Return what a query asks for; `None` when it does not ask, and gets everything.

    Raises:
        InvalidRequestError: `limit` is no number or out of range, or both ends are given.
    """
    if not query.keys() & {"limit", "after_id", "before_id"}:
        return None
    text = query.get("limit", str(DEFAULT_LIMIT))
    # `int` would take signs, spaces, underscores and digits of other scripts.
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"limit must be a number from 1 to {MAX_LIMIT}", param="limit")
    after_id, before_id = query.get("after_id"), query.get("before_id")
    if after_id is not None and before_id is not None:
        raise InvalidRequestError("give after_id or before_id, not both", param="before_id")
    return Paging(limit=limit, after_id=after_id, before_id=before_id)


def page(models: ModelList, paging: Paging) -> ModelList:
    """Return a page of `models`, in the order of the list; empty when the given id is not there."""
    data = models.data
    ids = [entry.id for entry in data]
    edge = paging.before_id if paging.after_id is None else paging.after_id
    if edge is not None and edge not in ids:
        data = ()
    elif paging.before_id is not None:
        data = data[: ids.index(paging.before_id)]
    elif paging.after_id is not None:
        data = data[ids.index(paging.after_id) + 1 :]
    shown = data[-paging.limit :] if paging.before_id is not None else data[: paging.limit]
    return ModelList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(shown) < len(data),
    )


def _json(value: object) -> Response:
    return Response(encode_json(value), media_type="application/json")
