"""The pages on translation list every field and every block, with what becomes of it."""

from typing import Any, get_args

import msgspec
import pytest

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import RequestError
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.target import Target, ToChat
from cortex_core.wire.anthropic.blocks import Block
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER, MessagesRequest
from cortex_core.wire.responses.request import ResponsesRequest
from tests.docs.tables import rows_of

FATES = {"exact", "approximated", "ignored", "refused"}


@pytest.mark.parametrize(
    ("page", "struct"),
    [("translation-messages", MessagesRequest), ("responses", ResponsesRequest)],
)
def test_page_has_every_field(page: str, struct: type[msgspec.Struct]) -> None:
    """Issue: a table says field by field what is exact, approximated, refused."""
    rows = {row[0]: row[1] for row in rows_of(page, "Fields")}

    assert set(rows) == {field.encode_name for field in msgspec.structs.fields(struct)}
    assert set(rows.values()) <= FATES


def test_page_has_every_block() -> None:
    """Ours: as above."""
    rows = {row[0]: row[1] for row in rows_of("translation-messages", "Blocks")}

    tags = {block.__struct_config__.tag for block in get_args(Block)}
    assert set(rows) == tags
    assert set(rows.values()) <= FATES


HI: dict[str, Any] = {"role": "user", "content": "hi"}
TOOL = {"name": "look", "input_schema": {"type": "object"}}
LATER = {"name": "later", "input_schema": {"type": "object"}, "defer_loading": True}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
CALL = {"type": "tool_use", "id": "t", "name": "look", "input": {}}

FIELDS: dict[str, Any] = {
    "model": "other",
    "messages": [HI, {"role": "user", "content": "again"}],
    "max_tokens": 11,
    "system": "Be brief.",
    "stream": True,
    "stop_sequences": ["END"],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "tools": [TOOL],
    "tool_choice": {"type": "none"},
    "thinking": {"type": "adaptive"},
    "output_config": {"format": SCHEMA},
    "output_format": SCHEMA,
    "metadata": {"user_id": "u"},
    "context_management": {"edits": []},
    "fallbacks": [{"model": "m"}],
    "thread": {"type": "new"},
    "container": {"id": "c"},
    "mcp_servers": [{"name": "s"}],
    "compaction": {"type": "auto"},
}
"""A value for every field."""

HISTORY: dict[str, Any] = {
    "text": {"text": "t"},
    "tool_use": CALL,
    "thinking": {"thinking": "hm", "signature": "s"},
    "redacted_thinking": {"data": "x"},
    "compaction": {"content": "a summary"},
    "server_tool_use": {"id": "s", "name": "web_search", "input": {}},
    "mcp_tool_use": {"id": "s", "name": "n", "input": {}, "server_name": "m"},
    "tool_search_tool_result": {
        "tool_use_id": "s",
        "content": {"tool_references": [{"type": "tool_reference", "tool_name": "later"}]},
    },
}
"""Blocks that an assistant's message has; results of the hosted service's tools as well."""

SAID: dict[str, Any] = {
    "image": {"source": {"type": "url", "url": "https://example.com/a.png"}},
    "document": {"source": {"type": "text", "media_type": "text/plain", "data": "words"}},
    "search_result": {"title": "t", "source": "s", "content": [{"type": "text", "text": "x"}]},
    "container_upload": {"file_id": "f"},
}
"""Blocks that a user's message has."""


def fates(section: str) -> dict[str, str]:
    return {row[0]: row[1] for row in rows_of("translation-messages", section)}


def translated(**fields: Any) -> ToChat:
    body = {"model": "m", "max_tokens": 10, "messages": [HI], **fields}
    target = Target(model=f"engine/{body['model']}")
    return messages_to_chat(decode_request(encode_json(body), MESSAGES_REQUEST_DECODER), target)


def with_block(kind: str) -> dict[str, Any]:
    """Return the fields of a request with a block of a kind where it may stand."""
    fields: dict[str, Any] = {"tools": [TOOL, LATER]}
    if kind in SAID:
        return {
            **fields,
            "messages": [HI, {"role": "user", "content": [{"type": kind, **SAID[kind]}]}],
        }
    if kind in ("tool_addition", "tool_removal"):
        name = "later" if kind == "tool_addition" else "look"
        change = {"type": kind, "tool": {"type": "tool_reference", "name": name}}
        return {**fields, "messages": [HI, {"role": "system", "content": [change]}]}
    if kind in ("tool_result", "tool_reference"):
        found = [{"type": "tool_reference", "tool_name": "later"}]
        content = found if kind == "tool_reference" else "the result"
        result = {"type": "tool_result", "tool_use_id": "t", "content": content}
        answered = [{"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]}]
        return {**fields, "messages": [HI, *answered]}
    block = {"type": kind, **HISTORY.get(kind, {"tool_use_id": "s", "content": "x"})}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
    answer = [result] if kind == "tool_use" else [{"type": "text", "text": "on"}]
    said = [{"role": "assistant", "content": [block]}, {"role": "user", "content": answer}]
    return {**fields, "messages": [HI, *said]}


@pytest.mark.parametrize("name", fates("Fields"))
def test_page_is_right_about_the_field(name: str) -> None:
    """Issue: a test keeps the table true."""
    fate = fates("Fields")[name]
    more = {"tools": [TOOL]} if name == "tool_choice" else {}
    if fate == "refused":
        with pytest.raises(RequestError) as refusal:
            translated(**{name: FIELDS[name]})
        assert refusal.value.param == name
        return
    without, done = translated(**more), translated(**more, **{name: FIELDS[name]})
    if fate == "ignored":
        assert done.chat == without.chat
        assert done.ignored == (name,)
    else:
        assert done.chat != without.chat
        assert done.ignored == ()


@pytest.mark.parametrize("kind", fates("Blocks"))
def test_page_is_right_about_the_block(kind: str) -> None:
    """Issue: a test keeps the table true."""
    fate = fates("Blocks")[kind]
    if fate == "refused":
        with pytest.raises(RequestError) as refusal:
            translated(**with_block(kind))
        assert (refusal.value.param or "").startswith("messages.1.content.0")
        return
    done = translated(**with_block(kind))
    if fate == "ignored":
        assert done.ignored == ("messages.1.content.0",)
    else:
        assert done.ignored == ()
        assert done.chat != translated(tools=[TOOL, LATER]).chat
