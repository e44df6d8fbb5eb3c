"""Conversations: items that are kept under a name and gone on from.

Source: OpenAI API reference, "Conversations" (read November 2026).
"""

from collections.abc import Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError, NotFoundError
from cortex_core.wire.responses.items import decode_items
from cortex_gateway.api.kept_items import ItemPage, input_items, page_of, resolved
from cortex_gateway.records.schema import CONVERSATION, KeptItem, Record
from cortex_gateway.records.store import RecordStore

PATH = "/v1/conversations"

MAX_ITEMS = 20
"""Items that one request may bring; OpenAI's number."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as callers get it."""

    id: str
    created_at: int
    """Epoch seconds."""
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    object: str = "conversation"


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the requests that make or change a conversation."""

    items: tuple[msgspec.Raw, ...] | None = None
    metadata: Mapping[str, str] | None = None


_CHANGES = msgspec.json.Decoder(Changes)
_CONVERSATION = msgspec.json.Decoder(Conversation)


class ConversationsApi:
    """The routes of conversations.

    Args:
        store: where they are kept; `None` keeps none.
        new_id: returns hexadecimal digits that are nobody else's.
        epoch_s: the wall clock.
    """

    def __init__(
        self,
        store: RecordStore | None,
        *,
        new_id: Callable[[], str],
        epoch_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._new_id = new_id
        self._epoch_s = epoch_s

    def routes(self) -> list[Route]:
        """Return the routes."""
        one, items = f"{PATH}/{{id}}", f"{PATH}/{{id}}/items"
        return [
            Route(PATH, self._create, methods=["POST"]),
            Route(one, self._retrieve, methods=["GET"]),
            Route(one, self._update, methods=["POST"]),
            Route(one, self._delete, methods=["DELETE"]),
            Route(items, self._list_items, methods=["GET"]),
            Route(items, self._add_items, methods=["POST"]),
            Route(f"{items}/{{item_id}}", self._retrieve_item, methods=["GET"]),
            Route(f"{items}/{{item_id}}", self._delete_item, methods=["DELETE"]),
        ]

    async def _create(self, request: Request) -> HttpResponse:
        changes = await _changes(request)
        items = await self._given(changes)
        conversation = Conversation(
            id=f"conv_{self._new_id()}",
            created_at=int(self._epoch_s()),
            metadata=changes.metadata or {},
        )
        await self._keep(conversation, items)
        return _json(conversation)

    async def _retrieve(self, request: Request) -> HttpResponse:
        return _json(await self._found(request))

    async def _update(self, request: Request) -> HttpResponse:
        conversation = await self._found(request)
        metadata = (await _changes(request)).metadata or {}
        changed = msgspec.structs.replace(conversation, metadata=metadata)
        await self._open().rewrite(conversation.id, encode_json(changed))
        return _json(changed)

    async def _delete(self, request: Request) -> HttpResponse:
        conversation = await self._found(request)
        await self._open().delete(conversation.id, CONVERSATION)
        deleted = {"id": conversation.id, "object": "conversation.deleted", "deleted": True}
        return _json(deleted)

    async def _list_items(self, request: Request) -> HttpResponse:
        conversation = await self._found(request)
        items = await self._open().items(conversation.id)
        return _json(page_of(items, request.query_params))

    async def _add_items(self, request: Request) -> HttpResponse:
        conversation = await self._found(request)
        items = await self._given(await _changes(request))
        await self._open().add_items(conversation.id, items)
        return _json(
            ItemPage(
                data=tuple(msgspec.Raw(item.body) for item in items),
                first_id=items[0].id if items else None,
                last_id=items[-1].id if items else None,
            )
        )

    async def _retrieve_item(self, request: Request) -> HttpResponse:
        conversation = await self._found(request)
        wanted = request.path_params["item_id"]
        for item in await self._open().items(conversation.id):
            if item.id == wanted:
                return HttpResponse(item.body, media_type="application/json")
        raise NotFoundError(f"there is no item {wanted[:200]!r} in this conversation")

    async def _delete_item(self, request: Request) -> HttpResponse:
        conversation = await self._found(request)
        wanted = request.path_params["item_id"]
        if not await self._open().delete_item(conversation.id, wanted):
            raise NotFoundError(f"there is no item {wanted[:200]!r} in this conversation")
        return _json(conversation)

    async def _found(self, request: Request) -> Conversation:
        conversation_id = request.path_params["id"]
        record = await self._open().get(conversation_id, CONVERSATION)
        if record is None:
            raise NotFoundError(f"there is no conversation {conversation_id[:200]!r}")
        return _CONVERSATION.decode(record.body)

    async def _given(self, changes: Changes) -> list[KeptItem]:
        given = changes.items or ()
        if len(given) > MAX_ITEMS:
            raise InvalidRequestError(f"at most {MAX_ITEMS} items at once", param="items")
        items = await resolved(input_items(given, self._new_id()), self._store)
        # What cannot be read must not come to light only when it is gone on from.
        decode_items((item.body for item in items), "items")
        return items

    async def _keep(self, conversation: Conversation, items: list[KeptItem]) -> None:
        record = Record(
            id=conversation.id,
            kind=CONVERSATION,
            body=encode_json(conversation),
            created=conversation.created_at,
        )
        await self._open().put(record, items)

    def _open(self) -> RecordStore:
        if self._store is None:
            raise NotFoundError("conversations are not kept here (gateway.responses.store)")
        return self._store


async def _changes(request: Request) -> Changes:
    return decode_request(await request.body() or b"{}", _CHANGES)


def _json(value: object) -> HttpResponse:
    return HttpResponse(encode_json(value), media_type="application/json")
