"""What every stream of messages must look like, as the SDKs and agents need it."""

from typing import Any

import msgspec

from cortex_core.sse import SseDecoder

_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class MessageStream(msgspec.Struct, kw_only=True):
    """A stream as a client would put it together."""

    events: list[dict[str, Any]]
    blocks: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """Arguments of calls are under `partial_json`, as text."""
    stop: dict[str, Any] | None = None
    """The `message_delta`; `None` when the stream broke."""
    error: dict[str, Any] | None = None


def check_messages(data: bytes) -> MessageStream:
    """Check a stream from its first to its last byte.

    Raises:
        AssertionError: it breaks a rule of Anthropic's "Streaming messages", or one of
            protocols.md 2.7 that clients rely on.
    """
    events = _events(data)
    stream = MessageStream(events=events)
    assert events, "a stream is not empty"
    if events[-1]["type"] == "error":
        error = events.pop()
        assert set(error) == {"type", "error", "request_id"}
        assert error["error"]["type"]
        assert error["error"]["message"]
        stream.error = error
    else:
        assert events[-1] == {"type": "message_stop"}, "message_stop is last"
        events.pop()
        stream.stop = _check_stop(events.pop())
    if events:
        _check_start(events)
        _check_blocks(events[2:], stream)
    if stream.stop is not None:
        assert any(block["type"] != "thinking" for block in stream.blocks), "there is an answer"
    stream.events = _events(data)
    return stream


def _events(data: bytes) -> list[dict[str, Any]]:
    for line in data.split(b"\n"):
        assert line.startswith((b"event: ", b"data: ", b": ")) or not line
    assert not data or data.endswith(b"\n\n")
    events = []
    for event in SseDecoder().feed(data):
        fields = msgspec.json.decode(event.data)
        assert fields["type"] == event.event, "every event is named"
        events.append(fields)
    return events


def _check_start(events: list[dict[str, Any]]) -> None:
    start = events[0]
    assert start["type"] == "message_start"
    message = start["message"]
    assert (message["type"], message["role"], message["content"]) == ("message", "assistant", [])
    assert message["id"]
    assert message["model"]
    assert message["stop_reason"] is None
    assert {"input_tokens", "output_tokens", "cache_read_input_tokens"} <= set(message["usage"])
    assert events[1] == {"type": "ping"}, "one ping follows"


def _check_stop(event: dict[str, Any]) -> dict[str, Any]:
    assert event["type"] == "message_delta"
    assert event["delta"]["stop_reason"], "an end has a reason"
    is_sequence = event["delta"]["stop_reason"] == "stop_sequence"
    assert is_sequence == (event["delta"]["stop_sequence"] is not None)
    is_refusal = event["delta"]["stop_reason"] == "refusal"
    assert is_refusal == (event["delta"]["stop_details"] is not None)
    return event


def _check_blocks(events: list[dict[str, Any]], stream: MessageStream) -> None:
    block: dict[str, Any] | None = None
    for event in events:
        kind = event["type"]
        if kind == "content_block_start":
            assert block is None, "one block is open at a time"
            assert event["index"] == len(stream.blocks), "indices count up"
            block = _started(event["content_block"])
            stream.blocks.append(block)
        elif kind == "content_block_delta":
            assert block is not None
            assert event["index"] == len(stream.blocks) - 1
            _add(block, event["delta"])
        else:
            assert kind == "content_block_stop", f"{kind} has no place there"
            assert block is not None
            assert event["index"] == len(stream.blocks) - 1
            assert block["type"] != "thinking" or block["signature"], "thoughts are signed"
            block = None
    assert block is None or stream.error is not None, "every block is closed"


def _started(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "tool_use":
        assert block["id"]
        assert block["name"]
        assert block["input"] == {}
        return {**block, "partial_json": ""}
    assert block["type"] in _DELTAS
    assert block[block["type"]] == ""
    return dict(block)


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if delta["type"] == "signature_delta":
        assert block["type"] == "thinking", "only thoughts are signed"
        assert not block["signature"], "once"
        assert delta["signature"]
        block["signature"] = delta["signature"]
        return
    kind, field = _DELTAS[block["type"]]
    assert delta["type"] == kind
    assert block["type"] != "thinking" or not block["signature"], "the signature is last"
    assert delta[field], "a delta adds something"
    block[field] += delta[field]
