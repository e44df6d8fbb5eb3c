"""An upstream that a scripted node plays, and what it answers in Anthropic's dialect."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from cortex_gateway.settings import UpstreamEntry
from tests.fakes.upstream import DONE, Script, ScriptedNode, Wire, answers

KEY = "sk-our-own-secret"
THEIRS = "sk-the-callers-own"
ENVIRON = {"HOSTED_KEY": KEY}

HISTORY: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = {"model": "big", "messages": HISTORY}
MESSAGES = {**CHAT, "max_tokens": 50}

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "their-big",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hello"},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 2},
}

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


def hosted(node: ScriptedNode, dialect: str = "anthropic", **fields: Any) -> UpstreamEntry:
    """Return the entry of an upstream that a scripted node plays."""
    told = {
        "name": "hosted",
        "dialect": dialect,
        "base_url": node.url + "/v1",
        "models": {"big": "their-big"},
        "api_key_env": "HOSTED_KEY",
    }
    return msgspec.convert({**told, **fields}, UpstreamEntry)


def message_events(*blocks: tuple[dict[str, Any], Sequence[dict[str, Any]]]) -> list[Any]:
    """Return the events of a streamed message: blocks, each with its deltas."""
    is_call = any(block["type"] == "tool_use" for block, _ in blocks)
    usage = {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 1}
    begun = {**MESSAGE, "content": [], "stop_reason": None, "usage": usage}
    events: list[Any] = [{"type": "message_start", "message": begun}, {"type": "ping"}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": d} for d in deltas]
        events.append({"type": "content_block_stop", "index": index})
    reason = {"stop_reason": "tool_use" if is_call else "end_turn", "stop_sequence": None}
    usage = {**usage, "output_tokens": 9}
    events.append({"type": "message_delta", "delta": reason, "usage": usage})
    return [*events, {"type": "message_stop"}]


def text(*pieces: str) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    block = {"type": "text", "text": ""}
    return block, [{"type": "text_delta", "text": piece} for piece in pieces]


def call(name: str, *pieces: str) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    block = {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {}}
    return block, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]


def as_bytes(events: Sequence[Any]) -> bytes:
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def messages(events: Sequence[Any]) -> Script:
    """Return a script that streams a message, event by event."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        for event in events:
            await wire.chunk(as_bytes([event]))
        await wire.end_stream()

    return script


def chunks(body: bytes) -> list[Any]:
    """Return the chunks of a chat stream that ends as it should."""
    assert body.endswith(DONE)
    events = [line for line in body.decode().split("\n\n") if line.startswith("data: {")]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def refuses_with(status: int, kind: str, message: str, **headers: str) -> Script:
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_x"}
    return answers(status, json.dumps(error).encode(), **headers)
