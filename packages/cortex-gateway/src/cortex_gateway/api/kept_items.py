"""Items of responses and conversations on their way into the store, and out of it in pages."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_gateway.records.schema import KeptItem
from cortex_gateway.records.store import RecordStore

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
"""OpenAI's numbers."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


class ItemPage(msgspec.Struct, frozen=True, kw_only=True):
    """A list of items."""

    data: tuple[msgspec.Raw, ...]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False
    object: str = "list"


def input_items(given: str | Sequence[msgspec.Raw] | None, salt: str) -> list[KeptItem]:
    """Return a request's input as items that have a type and an id.

    Args:
        given: text, or items.
        salt: makes ids unique, together with the place.

    Raises:
        InvalidRequestError: an item is no object.
    """
    if given is None:
        return []
    if isinstance(given, str):
        message = {"role": "user", "content": [{"type": "input_text", "text": given}]}
        given = (msgspec.Raw(encode_json(message)),)
    return [_named(raw, f"{salt}i{place:02}", f"input.{place}") for place, raw in enumerate(given)]


def _named(raw: msgspec.Raw, salt: str, path: str) -> KeptItem:
    try:
        members = _MEMBERS.decode(raw)
        if "type" not in members and "role" in members:
            members = {"type": msgspec.Raw(b'"message"'), **members}
        kind = _TEXT.decode(members["type"]) if "type" in members else "item_reference"
        if bytes(members.get("id", msgspec.Raw(b"null"))) == b"null":
            members["id"] = msgspec.Raw(encode_json(f"{_PREFIXES.get(kind, 'item')}_{salt}"))
        return KeptItem(id=_TEXT.decode(members["id"]), body=encode_json(members))
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequestError("an item is an object with a type", param=path) from None


async def resolved(items: Iterable[KeptItem], store: RecordStore | None) -> list[KeptItem]:
    """Return items with references replaced by what they stand for.

    Raises:
        InvalidRequestError: there is no such item.
    """
    whole: list[KeptItem] = []
    for place, item in enumerate(items):
        members = _MEMBERS.decode(item.body)
        if "type" in members and bytes(members["type"]) != b'"item_reference"':
            whole.append(item)
            continue
        found = None if store is None else await store.find_item(item.id)
        if found is None:
            raise InvalidRequestError(
                f"there is no item {item.id!r} here; send the item itself", param=f"input.{place}"
            )
        whole.append(KeptItem(id=found.id, body=found.body))
    return whole


def page_of(items: Sequence[KeptItem], query: Mapping[str, str]) -> ItemPage:
    """Return the page that a query asks for; the newest items first, unless it says otherwise.

    Raises:
        InvalidRequestError: `limit` or `order` is not one that there is.
    """
    text, order = query.get("limit", str(DEFAULT_LIMIT)), query.get("order", "desc")
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"limit must be a number from 1 to {MAX_LIMIT}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order is asc or desc", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    after = query.get("after")
    if after is not None:
        ids = [item.id for item in ordered]
        ordered = ordered[ids.index(after) + 1 :] if after in ids else []
    shown = ordered[:limit]
    return ItemPage(
        data=tuple(msgspec.Raw(item.body) for item in shown),
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(shown) < len(ordered),
    )
