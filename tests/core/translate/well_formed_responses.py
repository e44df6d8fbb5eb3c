"""What every stream of the Responses dialect must look like, as the SDKs and agents need it."""

from typing import Any

import msgspec

from cortex_core.sse import SseDecoder

KEYS = frozenset(
    [
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "incomplete_details",
        "model",
        "previous_response_id",
        "instructions",
        "output",
        "error",
        "tools",
        "tool_choice",
        "truncation",
        "parallel_tool_calls",
        "text",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "top_logprobs",
        "temperature",
        "reasoning",
        "usage",
        "max_output_tokens",
        "max_tool_calls",
        "store",
        "background",
        "service_tier",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
    ]
)
"""Of the response object, there even if null (protocols.md 8.2)."""

_ENDS = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}

_FIELDS = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.reasoning_text": "text",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
}
"""Where the `.done` event of a text has the whole of it."""


class ResponseStream(msgspec.Struct, kw_only=True):
    """A stream as a client would put it together."""

    events: list[dict[str, Any]]
    response: dict[str, Any]
    """The final object."""
    items: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """Those that `response.output_item.done` gave."""
    deltas: list[str] = msgspec.field(default_factory=list)
    """The text of every item that was begun, put together from its deltas."""


def check_responses(data: bytes) -> ResponseStream:
    """Check a stream from its first to its last byte.

    Raises:
        AssertionError: it breaks a rule of protocols.md 8.2 or 8.3.
    """
    events = events_of(data)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    for event in events[:2]:
        assert set(event["response"]) >= KEYS
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
    last = events[-1]
    stream = ResponseStream(events=events, response=last["response"])
    _check_end(last)
    for event in events[2:-1]:
        assert event["type"] not in _ENDS, "the end comes once, and last"
    _check_items(events[2:-1], stream)
    output = stream.response["output"]
    assert output[: len(stream.items)] == stream.items, "the object has what was streamed"
    if last["type"] != "response.failed":
        assert len(output) == len(stream.items)
    ids = [item["id"] for item in output]
    assert len(ids) == len(set(ids)), "ids are unique"
    return stream


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream, each of which is named by its type."""
    for line in data.split(b"\n"):
        assert line.startswith((b"event: ", b"data: ", b": ")) or not line
    assert not data or data.endswith(b"\n\n")
    events = []
    for event in SseDecoder().feed(data):
        fields = msgspec.json.decode(event.data)
        assert fields["type"] == event.event, "every event is named"
        events.append(fields)
    return events


def _check_end(event: dict[str, Any]) -> None:
    response = event["response"]
    assert set(response) >= KEYS
    assert response["object"] == "response"
    assert response["status"] == _ENDS[event["type"]]
    assert (response["error"] is not None) == (response["status"] == "failed")
    assert (response["incomplete_details"] is not None) == (response["status"] == "incomplete")
    assert (response["completed_at"] is not None) == (response["status"] == "completed")
    assert (response["usage"] is None) == (response["status"] == "failed")


def _check_items(events: list[dict[str, Any]], stream: ResponseStream) -> None:
    is_open, done, part = False, "", False
    item: dict[str, Any] = {}
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert not is_open, "one item is open at a time"
            assert event["output_index"] == len(stream.deltas), "indices count up"
            item, is_open, done = event["item"], True, ""
            assert item["status"] == "in_progress"
            assert not any(item.get(name) for name in ("content", "arguments", "input"))
            stream.deltas.append("")
            continue
        assert is_open, f"{kind} is within an item"
        assert event["output_index"] == len(stream.deltas) - 1
        if kind == "response.output_item.done":
            assert not part, "every part is closed"
            assert event["item"]["id"] == item["id"]
            assert event["item"]["type"] == item["type"]
            assert event["item"]["status"] in ("completed", "incomplete")
            assert text_of(event["item"]) == done, "the item has what was streamed"
            stream.items.append(event["item"])
            is_open = False
            continue
        assert event["item_id"] == item["id"]
        if "_part." in kind:
            assert part == kind.endswith(".done"), "parts open and close in turn"
            part = kind.endswith(".added")
            continue
        name, _, end = kind.rpartition(".")
        assert part == (item["type"] == "message" or "summary" in name)
        if end == "delta":
            assert event["delta"], "a delta adds something"
            stream.deltas[-1] += event["delta"]
        else:
            assert end == "done", f"{kind} has no place there"
            done = event[_FIELDS[name]]
            assert done in (stream.deltas[-1], stream.deltas[-1] or "{}")
    assert not is_open or stream.response["status"] == "failed", "every item is closed"


def text_of(item: dict[str, Any]) -> str:
    """Return the text, the arguments or the input of an item."""
    if item["type"] == "function_call":
        return str(item["arguments"])
    if item["type"] == "custom_tool_call":
        return str(item["input"])
    parts = [*item.get("summary", ()), *item["content"]]
    return "".join(part.get("text", "") or part.get("refusal", "") for part in parts)
